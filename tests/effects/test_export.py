"""Adapter files: how many, how named, in which numbers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.effects.registry import effect
from tests.effects.runs import Tiny

ONE_STEP = "trainer.max_steps=1"


@effect("export.layouts")
def test_each_layout_is_a_file_with_keys_of_its_own(tiny: Tiny) -> None:
    kohya = tiny.run("export.layouts=[kohya]")
    assert kohya.files == ["tiny.safetensors"]
    assert all(key.startswith(("lora_unet_", "lora_te_")) for key in kohya.adapter)
    diffusers = tiny.run("export.layouts=[diffusers]")
    assert diffusers.files == ["tiny.diffusers.safetensors"]
    keys = load_file(diffusers.folder / "adapters" / diffusers.files[0])
    assert all(key.startswith(("unet.", "text_encoder.")) for key in keys)
    assert tiny.run("export.layouts=[]").value is None


@effect("export.layouts")
def test_without_layouts_a_run_leaves_its_checkpoint_alone(tiny: Tiny) -> None:
    run = tiny.run("export.layouts=[]")
    assert not (run.folder / "adapters").exists()
    assert run.checkpoints == ["step-000003.ckpt"]


@effect("export.precision")
@pytest.mark.parametrize(
    ("word", "dtype"),
    [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_every_tensor_of_the_file_has_the_precision(
    tiny: Tiny, word: str, dtype: torch.dtype
) -> None:
    run = tiny.run(f"export.precision={word}", ONE_STEP)
    for name in run.files:
        tensors = load_file(run.folder / "adapters" / name).values()
        assert {tensor.dtype for tensor in tensors} == {dtype}


@effect("export.name_template")
def test_the_template_names_the_files(tiny: Tiny) -> None:
    run = tiny.run("export.name_template='{run_id} of {name}'", "run_id=first", ONE_STEP)
    assert run.files == ["first of tiny.diffusers.safetensors", "first of tiny.safetensors"]


@effect("export.every_n_steps")
def test_files_of_the_steps_in_between_differ_from_the_last(tiny: Tiny) -> None:
    run = tiny.run("export.every_n_steps=2", "export.layouts=[kohya]", "trainer.max_steps=4")
    # Step 4 is the end and has the plain name.
    assert run.files == ["tiny-step000002.safetensors", "tiny.safetensors"]
    middle, end = (load_file(run.folder / "adapters" / name) for name in run.files)
    assert any(not torch.equal(middle[key], end[key]) for key in end)


@effect("export.every_n_epochs")
def test_files_follow_the_epochs(tiny: Tiny) -> None:
    # Batches of 5 cut the buckets of 5, 3 and 4 images into one each: 3 steps an epoch.
    run = tiny.run(
        "export.every_n_epochs=1",
        "export.layouts=[kohya]",
        "data.batch_size=5",
        "trainer.max_steps=7",
    )
    assert run.files == [
        "tiny-epoch0001.safetensors",
        "tiny-epoch0002.safetensors",
        "tiny.safetensors",
    ]
