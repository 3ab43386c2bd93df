"""Adapter files: how many, how named, in which numbers."""

from __future__ import annotations

import base64
import hashlib
import io
import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from loralab.app.data_metadata import data_fields
from loralab.errors import AdapterError, ConfigError
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


@effect("export.precision")
def test_other_words_for_a_precision_are_understood(tiny: Tiny) -> None:
    known = {word: tiny.config(f"export.precision={word}").export.precision.name
             for word in ("float", "32", "16")}  # fmt: skip
    assert known == {"float": "fp32", "32": "fp32", "16": "fp16"}


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


@effect("export.every_n_steps", "export.every_n_epochs")
def test_all_files_count_epochs_from_one_and_the_last_epoch_too(tiny: Tiny) -> None:
    # 3 steps an epoch, as above; the last step ends the second epoch.
    run = tiny.run(
        "export.every_n_epochs=1", "export.every_n_steps=1", "export.layouts=[kohya]",
        "data.batch_size=5", "trainer.max_steps=6",
    )  # fmt: skip
    told = {}
    for name in run.files:
        with safe_open(run.folder / "adapters" / name, framework="pt") as content:
            fields = content.metadata()
        assert fields["ss_num_epochs"] == "2"
        told[name] = (fields["ss_steps"], fields["ss_epoch"])
    assert told == {
        "tiny-step000001.safetensors": ("1", "1"),
        "tiny-step000002.safetensors": ("2", "1"),
        "tiny-step000003.safetensors": ("3", "1"),
        "tiny-epoch0001.safetensors": ("3", "1"),
        "tiny-step000004.safetensors": ("4", "2"),
        "tiny-step000005.safetensors": ("5", "2"),
        "tiny.safetensors": ("6", "2"),
    }


@effect("export.container")
@pytest.mark.parametrize("container", ["ckpt", "pt", "bin"])
def test_other_containers_hold_the_same_tensors(tiny: Tiny, container: str) -> None:
    run = tiny.run(f"export.container={container}", "export.layouts=[kohya]", ONE_STEP)
    assert run.files == [f"tiny.{container}"]
    tensors = torch.load(run.folder / "adapters" / run.files[0], weights_only=True)
    same = tiny.run("export.layouts=[kohya]", ONE_STEP).adapter
    assert tensors.keys() == same.keys()
    assert all(torch.equal(tensors[key], same[key]) for key in same)


@effect("export.metadata")
def test_metadata_is_as_much_as_asked_for(tiny: Tiny) -> None:
    full, minimal, none = (
        tiny.run(f"export.metadata={amount}", ONE_STEP).metadata
        for amount in ("full", "minimal", "none")
    )
    assert {"loralab.config", "loralab.versions", "loralab.order_receipts"} <= full.keys()
    assert full["ss_steps"] == "1"
    assert full["ss_training_comment"] == ""
    # sd-scripts' minimum without metadata: six ss_ fields where they apply, modelspec, hashes.
    assert {key for key in minimal if key.startswith("ss_")} == {
        "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha",
    }  # fmt: skip
    assert not [key for key in minimal if key.startswith("loralab")]
    assert minimal["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert set(none) == {"sshs_model_hash", "sshs_legacy_hash"}


@effect("export.comment")
def test_the_comment_is_in_the_file_and_may_be_in_its_name(tiny: Tiny) -> None:
    run = tiny.run("export.comment='first try, low rate'", ONE_STEP)
    assert run.metadata["ss_training_comment"] == "first try, low rate"
    named = tiny.run(
        "export.comment='first try'",
        "export.name_template='{name}-{comment}-{kind}{rank}'",
        ONE_STEP,
    )  # fmt: skip
    assert "tiny-first-try-lora2.safetensors" in named.files


@effect("export.on_name_collision")
@pytest.mark.parametrize("policy", ["version", "error", "overwrite"])
def test_a_file_that_is_not_the_runs_own_is_kept_or_not(tiny: Tiny, policy: str) -> None:
    built = tiny.build(f"export.on_name_collision={policy}", "export.layouts=[kohya]")
    foreign = built.folder.path / "adapters" / "tiny.safetensors"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"foreign")
    if policy == "error":
        with pytest.raises(AdapterError, match="is there already"):
            built.job.writer.write("", 1)
    else:
        (written,) = built.job.writer.write("", 1)
        assert written.name == {"version": "tiny-v2", "overwrite": "tiny"}[policy] + ".safetensors"
        assert built.job.writer.write("", 1) == [written], "a run replaces its own files"
    assert (foreign.read_bytes() == b"foreign") == (policy != "overwrite")


@effect("export.keep_last")
def test_only_the_newest_files_of_steps_stay(tiny: Tiny) -> None:
    run = tiny.run(
        "export.keep_last=2", "export.every_n_steps=1", "export.layouts=[kohya]",
        "trainer.max_steps=5",
    )  # fmt: skip
    assert run.files == [
        "tiny-step000003.safetensors", "tiny-step000004.safetensors", "tiny.safetensors",
    ]  # fmt: skip
    names = {path.name for path in (run.folder / "adapters").iterdir()}
    assert "tiny-step000002.json" not in names
    assert {"tiny-step000004.json", "tiny-step000004.md", "tiny.json", "tiny.md"} <= names


def test_the_card_tells_files_and_figures(tiny: Tiny) -> None:
    run = tiny.run(ONE_STEP)
    card = json.loads((run.folder / "adapters" / "tiny.json").read_text(encoding="utf-8"))
    for name, digest in card["files"].items():
        data = (run.folder / "adapters" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
    assert card["config"]["adapter"]["rank"] == 2
    text = (run.folder / "adapters" / "tiny.md").read_text(encoding="utf-8")
    assert text.startswith("# tiny\n")
    assert "rank 2, alpha 2" in text


def test_the_hash_in_the_metadata_is_that_of_the_bytes_after_the_header(tiny: Tiny) -> None:
    run = tiny.run(ONE_STEP)
    data = (run.folder / "adapters" / "tiny.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    assert run.metadata["sshs_model_hash"] == hashlib.sha256(data[begin:]).hexdigest()
    frequency = json.loads(run.metadata["ss_tag_frequency"])
    assert all(isinstance(count, int) for tags in frequency.values() for count in tags.values())


def test_bucket_info_gives_the_mean_error_of_the_ratios(tiny: Tiny) -> None:
    options = ("trainer.max_steps=1", "data.buckets.step=32")
    info = json.loads(tiny.run(*options).metadata["ss_bucket_info"])
    sizes = {
        item.record.path: (item.record.width, item.record.height, item.bucket)
        for item in tiny.survey(*options).items
    }
    errors = [abs(bucket.width / bucket.height - width / height)
              for width, height, bucket in sizes.values()]  # fmt: skip
    assert max(errors) > 0
    assert info["mean_img_ar_error"] == pytest.approx(sum(errors) / len(errors), rel=1e-12)


def test_the_total_batch_counts_devices_and_accumulation(tiny: Tiny) -> None:
    options = ("trainer.devices=2", "trainer.accumulate_grad_batches=3", "data.batch_size=2")
    fields = data_fields(tiny.config(*options), tiny.survey(*options))
    assert fields["ss_total_batch_size"] == 2 * 3 * 2
    assert fields["ss_batch_size_per_device"] == 2


@effect("export.modelspec.thumbnail")
def test_the_preview_is_kept_in_the_metadata(tiny: Tiny) -> None:
    drawn = ("preview.prompts=[a square, a circle]", "preview.steps=2", ONE_STEP)
    assert "modelspec.thumbnail" not in tiny.run(*drawn).metadata
    url = tiny.run(*drawn, "export.modelspec.thumbnail=32").metadata["modelspec.thumbnail"]
    kind, _, data = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (picture.format, picture.size) == ("JPEG", (32, 32))
    assert len(url) < 4000


@effect("export.modelspec.thumbnail")
def test_a_thumbnail_without_previews_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="is 64, but no previews are drawn; name prompts in"):
        tiny.survey("export.modelspec.thumbnail=64")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("flip", {"ss_flip_aug": "True", "ss_random_crop": "False", "ss_color_aug": "False"}),
        ("random_crop", {"ss_flip_aug": "False", "ss_random_crop": "True"}),
        ("color", {"ss_color_aug": "True", "ss_random_crop": "False"}),
    ],
)
def test_metadata_names_the_augmentation_in_use(
    tiny: Tiny, kind: str, fields: dict[str, str]
) -> None:
    run = tiny.run(ONE_STEP, f"data.augmentations=[{kind}]", "data.latent_cache.enabled=false")
    assert fields.items() <= run.metadata.items()


@effect("export.keep_best")
def test_the_files_of_the_best_validations_stay(tiny: Tiny) -> None:
    run = tiny.run(
        "validation.fraction=0.3", "validation.every_n_steps=1", "trainer.max_steps=6",
        "optimizer.lr=0.1", "logger=csv", "export.keep_best=2", "export.layouts=[kohya]",
    )  # fmt: skip
    losses = run.column("val/loss")
    best = sorted(sorted(range(6), key=losses.__getitem__)[:2])
    assert best != [4, 5], "the newest are not the best here"
    assert run.files == [
        *(f"tiny-best-step{step + 1:06d}.safetensors" for step in best), "tiny.safetensors",
    ]  # fmt: skip
    cards = (run.folder / "adapters").glob("tiny-best-*.json")
    told = [json.loads(card.read_text(encoding="utf-8"))["figures"]["val/loss"] for card in cards]
    assert sorted(told) == pytest.approx(sorted(losses)[:2])
    with pytest.raises(ConfigError, match=r"export\.keep_best is 2, but no image is held out"):
        tiny.config("export.keep_best=2")


@effect("export.modelspec.title", "export.modelspec.author", "export.modelspec.license")
@effect("export.modelspec.tags", "export.modelspec.description")
@effect("export.modelspec.trigger_phrase", "export.modelspec.usage_hint")
@pytest.mark.parametrize(
    ("field", "given", "written"),
    [
        ("title", "Blueprints", "Blueprints"),
        ("author", "Ada", "Ada"),
        ("license", "CC-BY-4.0", "CC-BY-4.0"),
        ("tags", "[style, blue]", "style, blue"),
        ("description", "white on blue", "white on blue"),
        ("trigger_phrase", "cyanotype", "cyanotype"),
        ("usage_hint", "strength 0.8", "strength 0.8"),
    ],
)
def test_what_the_files_say_to_people(tiny: Tiny, field: str, given: str, written: str) -> None:
    built = tiny.build(f"export.modelspec.{field}='{given}'" if given[0] != "[" else
                       f"export.modelspec.{field}={given}", "export.layouts=[kohya]")  # fmt: skip
    (file,) = built.job.writer.write("", 1)
    with safe_open(file, framework="pt") as content:
        said = content.metadata()
    assert said[f"modelspec.{field}"] == written
    plain = tiny.run(ONE_STEP).metadata
    assert plain.get(f"modelspec.{field}") == ("tiny" if field == "title" else None)
