"""Pictures while training: files, and what changes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tests.effects.registry import effect
from tests.effects.runs import Tiny

PREVIEW = ("preview.prompts=[red circle]", "preview.steps=2", "trainer.max_steps=1")


def first_picture(tiny: Tiny, *overrides: str) -> bytes:
    run = tiny.run(*PREVIEW, *overrides)
    return (run.folder / "previews" / "step-000000.png").read_bytes()


@effect("preview.prompts")
def test_no_prompts_no_pictures(tiny: Tiny) -> None:
    folder = tiny.run().folder
    assert not (folder / "previews").exists()
    assert not (folder / "preview.png").exists()


@effect("preview.prompts")
def test_the_prompt_decides_the_picture(tiny: Tiny) -> None:
    run = tiny.run(*PREVIEW)
    assert (run.folder / "preview.png").is_file()
    other = tiny.run("preview.prompts=[blue square]", *PREVIEW[1:])
    assert first_picture(tiny) != (other.folder / "previews" / "step-000000.png").read_bytes()


@effect("preview.every_n_steps")
@pytest.mark.parametrize(("every", "steps"), [("null", [0, 3]), ("2", [0, 2, 3])])
def test_pictures_keep_their_cadence_and_never_miss_start_and_end(
    tiny: Tiny, every: str, steps: list[int]
) -> None:
    run = tiny.run(*PREVIEW[:2], f"preview.every_n_steps={every}")
    found = sorted(path.name for path in (run.folder / "previews").iterdir())
    assert found == [f"step-{step:06d}.png" for step in steps]


@effect("preview.seed")
def test_the_same_seed_draws_the_same_picture_and_another_another(tiny: Tiny) -> None:
    again = tiny.run_anew(*PREVIEW)
    assert (again.folder / "previews" / "step-000000.png").read_bytes() == first_picture(tiny)
    assert first_picture(tiny, "preview.seed=1") != first_picture(tiny)


@effect("preview.guidance_scale", "preview.negative_prompt")
def test_the_negative_prompt_counts_only_with_guidance(tiny: Tiny) -> None:
    negative = "preview.negative_prompt=blue square"
    assert first_picture(tiny, negative) != first_picture(tiny)
    off = "preview.guidance_scale=1"
    assert first_picture(tiny, off, negative) == first_picture(tiny, off)
    assert first_picture(tiny, off) != first_picture(tiny)


@effect("preview.steps")
def test_a_picture_takes_as_many_forward_passes_as_steps(tiny: Tiny) -> None:
    def passes(steps: int) -> int:
        built = tiny.build(PREVIEW[0], PREVIEW[2], f"preview.steps={steps}")
        calls = _count_calls(built.job.module.denoiser)
        built.fit()
        return len(calls) - 1  # one was the training step

    one = passes(1)
    assert one > 0
    assert passes(3) == 3 * one


def _count_calls(module: nn.Module) -> list[None]:
    calls: list[None] = []
    module.register_forward_hook(lambda *_: calls.append(None))
    return calls


@effect("preview.prompts")
def test_previews_change_no_bit_of_the_adapter(tiny: Tiny) -> None:
    shown, plain = tiny.run(*PREVIEW).checkpoint(1), tiny.run(PREVIEW[2]).checkpoint(1)
    differing = [
        key for key, tensor in plain["state_dict"].items()
        if not tensor.equal(shown["state_dict"][key])
    ]  # fmt: skip
    assert differing == []
    assert Path(tiny.run(PREVIEW[2]).folder, "previews").exists() is False
