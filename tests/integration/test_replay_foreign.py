"""Recordings as other trainers make them, replayed from bases as they are found."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel

from loralab.app.logs import quiet_libraries
from loralab.cli.replay import replay
from loralab.errors import UserError
from tests.independent_loop import Recipe, Trace, train
from tests.tiny import make_tiny_sd1

MICRO_BATCHES = 24
NEUTRAL = ["~experiment", "model=sd15", "trainer=cpu", "cpu_threads=1", "optimizer.lr=1e-3"]
FROM_FILE = [
    "adapter.rank=4", "adapter.alpha=2.0", "adapter.unet.targets=[sd_scripts]",
    "adapter.text_encoder.targets=[sd_scripts]",
]  # fmt: skip
VELOCITY = [
    "compat=sd_scripts", "model.prediction_type=v_prediction", "objective=min_snr",
    "objective.min_snr_gamma=5", "objective.noise_offset=0.1", "model.clip_skip=2",
    "model.max_tokens=150", "trainer.accumulate_grad_batches=2", "scheduler=cosine_with_restarts",
    "scheduler.num_cycles=3", "scheduler.warmup_steps=3", "adapter.text_encoder.lr=4e-4",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd1(tmp_path_factory.mktemp("foreign") / "base")


@pytest.fixture(scope="module")
def start(base: Path) -> Path:
    """A file as `networks/lora.py` writes it, of containers' linear and convolution layers."""
    parts: dict[str, Any] = {
        "lora_unet": UNet2DConditionModel.from_pretrained(base / "unet"),
        "lora_te_text_model": CLIPTextModel.from_pretrained(base / "text_encoder"),
    }
    containers = ("Transformer2DModel", "CLIPAttention", "CLIPMLP")
    torch.manual_seed(3)
    state = {}
    for prefix, part in parts.items():
        for path, module in part.named_modules():
            if type(module).__name__ not in containers:
                continue
            for child, layer in module.named_modules():
                if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                    continue
                name = f"{prefix}_{path}_{child}".replace(".", "_")
                outer, inner, *kernel = layer.weight.shape
                down = torch.randn(4, inner, *kernel) / math.sqrt(inner)
                up = 0.1 * torch.randn(outer, 4, *([1] * len(kernel)))
                state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"] = down, up
                state[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(state, base.parent / "start.safetensors")
    return base.parent / "start.safetensors"


def recording(path: Path, *, rows: int, odd: bool = False, vocabulary: int = 512) -> Path:
    """Write random micro-batches.

    Args:
        path: Where.
        rows: Rows of 77 tokens, each with start and end.
        odd: Other number formats, names and sizes than those of the documentation's table.
    """
    generator = torch.Generator().manual_seed(11)
    content: dict[str, Tensor] = {}
    for number in range(MICRO_BATCHES):
        size = 1 + number % 3 if odd else 2
        name = f"{number + 95:03d}" if odd else f"{number:02d}"
        latents = torch.randn(size, 4, 8, 12 if number % 2 else 8, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        noise += 0.1 * torch.randn(size, 4, 1, 1, generator=generator)
        ids = torch.randint(0, vocabulary - 2, (size, rows, 77), generator=generator)
        ids[..., 0], ids[..., 40:] = vocabulary - 2, vocabulary - 1
        timesteps = torch.randint(0, 1000, (size,), generator=generator)
        if odd:
            ids, timesteps = ids.int(), timesteps.float()
            latents = latents.half()
            ids = ids[:, 0] if rows == 1 else ids
        content |= {
            f"{name}.latents": latents, f"{name}.noise": noise,
            f"{name}.timesteps": timesteps, f"{name}.input_ids": ids,
        }  # fmt: skip
    save_file(content, path)
    return path


def vocabulary_of(base: Path) -> int:
    config = json.loads((base / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    return int(config["vocab_size"])


def outcome(
    base: Path, batches: Path, out: Path, capfd: pytest.CaptureFixture[str], *overrides: str,
    epoch_length: int | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:  # fmt: skip
    """Return the lines and the adapter of a replay."""
    quiet_libraries()
    capfd.readouterr()
    given = [*NEUTRAL, f"model.path={base}", *overrides]
    replay(batches, out, given, epoch_length=epoch_length)
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()], load_file(out)


def assert_equal(ours: tuple[list[dict[str, Any]], dict[str, Tensor]], theirs: Trace) -> None:
    lines, adapter = ours
    steps = [line for line in lines if "step" in line]
    assert [line["loss"] for line in lines] == pytest.approx(theirs.losses, rel=1e-6)
    assert [line["gradient_norm"] for line in steps] == pytest.approx(theirs.norms, rel=1e-6)
    rates = [line["learning_rates"] for line in steps]
    assert list(rates[0]) == ["text_encoder", "unet"]  # the order in which sd-scripts clips
    assert [rate["unet"] for rate in rates] == pytest.approx(theirs.rates, rel=1e-12)
    assert [rate["text_encoder"] for rate in rates] == pytest.approx(theirs.text_rates, rel=1e-12)
    assert adapter.keys() == theirs.adapter.keys()
    for key, tensor in theirs.adapter.items():
        assert float((adapter[key] - tensor).norm()) <= 1e-6 * float(tensor.norm()), key


def test_a_base_without_tokenizer_and_vae_is_replayed_on_the_schedule_of_sd_scripts(
    base: Path, start: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    for part in ("unet", "text_encoder"):
        shutil.copytree(base / part, bare / part)
    DDPMScheduler().save_pretrained(bare / "scheduler")  # linear betas: another schedule
    batches = recording(tmp_path / "b.safetensors", rows=2, vocabulary=vocabulary_of(base))
    recipe = Recipe(
        rate=1e-3, text_rate=4e-4, num_steps=12, prediction_type="v_prediction", min_snr=5.0,
        accumulation=2, clip_skip=2, schedule="cosine_with_restarts", num_warmup=3, num_cycles=3,
    )  # fmt: skip
    chosen = [*FROM_FILE, *VELOCITY, f"adapter.init_from={start}", "trainer.max_steps=12"]
    ours = outcome(bare, batches, tmp_path / "out.safetensors", capfd, *chosen)
    assert_equal(ours, train(base, batches, start, recipe))


def test_other_number_formats_sizes_and_names_come_to_the_same_numbers(
    base: Path, start: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    vocabulary = vocabulary_of(base)
    batches = recording(tmp_path / "b.safetensors", rows=1, odd=True, vocabulary=vocabulary)
    plain = {
        key: tensor.long() if "ids" in key or "timesteps" in key else tensor.float()
        for key, tensor in load_file(batches).items()
    }
    plain = {k: t[:, None] if "ids" in k else t for k, t in plain.items()}
    save_file(plain, tmp_path / "plain.safetensors")
    recipe = Recipe(
        rate=1e-3, text_rate=5e-4, num_steps=15, accumulation=2, epoch_length=5, clip_norm=0.05
    )
    chosen = [
        *FROM_FILE, "compat=sd_scripts", f"adapter.init_from={start}", "trainer.max_steps=15",
        "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.05",
    ]  # fmt: skip
    out = tmp_path / "out.safetensors"
    ours = outcome(base, batches, out, capfd, *chosen, epoch_length=5)
    assert_equal(ours, train(base, tmp_path / "plain.safetensors", start, recipe))


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("07.input_ids", torch.full((2, 1, 77), 10**6), "input_ids up to 1000000; this base has"),
        ("07.timesteps", torch.tensor([5, 1000]), "timesteps up to 1000; this base has 1000"),
        ("07.timesteps", torch.tensor([0.5, 3.0]), "7.timesteps that are not whole numbers"),
        ("07.timesteps", torch.tensor([-1, 3]), "7.timesteps that are not whole numbers"),
        ("07.loss", torch.zeros(2), r"7.loss of shape \(2,\), which does not go with"),
        ("7.noise", torch.zeros(2, 4, 8, 12), "has 7.noise twice, once with leading zeros"),
    ],
)
def test_what_a_base_cannot_read_is_refused_by_name(
    base: Path, tmp_path: Path, name: str, tensor: Tensor, said: str
) -> None:
    batches = recording(tmp_path / "b.safetensors", rows=1, vocabulary=vocabulary_of(base))
    save_file(load_file(batches) | {name: tensor}, batches)
    out = tmp_path / "out.safetensors"
    with pytest.raises(UserError, match=said):
        replay(batches, out, [*NEUTRAL, f"model.path={base}"])
    assert not out.exists()


def test_an_average_is_what_a_replay_writes_where_the_run_would_export_it(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    batches = recording(tmp_path / "b.safetensors", rows=1, vocabulary=vocabulary_of(base))
    chosen = ["trainer.max_steps=24", "ema.use_for=[export]", "ema.decay=0.5", "ema.warmup=false"]
    live = outcome(base, batches, tmp_path / "a.safetensors", capfd, *chosen[:1])
    still = outcome(base, batches, tmp_path / "b.out.safetensors", capfd, "ema=default", *chosen)
    assert live[0] == still[0]  # the losses are those of the live weights
    assert any(not torch.equal(live[1][key], still[1][key]) for key in live[1])


def test_a_schedule_longer_than_the_recording_is_told(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    batches = recording(tmp_path / "b.safetensors", rows=1, vocabulary=vocabulary_of(base))
    quiet_libraries()
    given = [*NEUTRAL, f"model.path={base}", "scheduler=cosine", "trainer.max_steps=100"]
    replay(batches, tmp_path / "out.safetensors", given)
    said = "The schedule is 100 steps long, as trainer.max_steps says; the recording ends after 24."
    assert said in capfd.readouterr().err


def test_the_demos_preset_is_refused_without_advice_that_changes_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        replay(tmp_path / "batches.safetensors", tmp_path / "out.safetensors", ["model=sd15"])
    (problem,) = refusal.value.problems
    assert problem.key == "experiment"
    assert "experiment=demo is made for the embedded base, but model=sd15" in problem.message
    assert problem.message.endswith(
        "add ~experiment, or the experiment of the run that was recorded."
    )
    assert "sd15_style" not in problem.message
