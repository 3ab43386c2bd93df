"""Settings files of other programs: what becomes of them, and back again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loralab.app.folders import choose_folder
from loralab.app.preflight import preflight
from loralab.app.settings.backward import settings_of
from loralab.app.settings.experiment import Experiment, load_settings, write_experiment
from loralab.app.settings.original import Format, Verdict
from loralab.app.settings.reading import read_settings
from loralab.config.choices import AdapterKind, Loss
from loralab.config.settings_table import settings
from loralab.errors import ConfigError
from tests.app.settings_world import FILES, NAMES, SettingsWorld, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SettingsWorld:
    return make_world(tmp_path_factory.mktemp("settings"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a launcher's JSON of a few settings."""

    def written(**values: Any) -> Path:
        path = tmp_path / "few.json"
        least = {"base_model": "b", "img_folder": "i", "use_8bit_adam": False}
        path.write_text(json.dumps({**least, **values}), encoding="utf-8")
        return path

    return written


def told(experiment: Experiment, verdict: Verdict) -> dict[str, str]:
    """Return what was told of a kind, by setting."""
    return {row.name: row.text for row in experiment.findings if row.verdict is verdict}


def test_there_are_ten_files_in_the_formats() -> None:
    formats = {read_settings(FILES / name).format for name in NAMES if name != "metadata.json"}
    assert formats == set(Format) - {Format.metadata}
    assert len(NAMES) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_a_file_becomes_an_experiment_that_composes(world: SettingsWorld, name: str) -> None:
    experiment, config = world.load(world.file(name))
    assert experiment.mapped
    if config.trainer["precision"] == "16-mixed":
        config.trainer["precision"] = "32-true"  # that needs a GPU
    if config.optimizer["_target_"].startswith("bitsandbytes"):
        config.optimizer = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-4}
    config.check_only = True
    survey = preflight(config, choose_folder(config))
    assert survey.total_steps > 0


@pytest.mark.parametrize("name", ["launcher_all.json", "launcher_plain.json"])
def test_loading_and_saving_returns_every_setting(world: SettingsWorld, name: str) -> None:
    path = world.file(name)
    given = json.loads(path.read_text(encoding="utf-8"))
    _, config = world.load(path)
    saved = settings_of(config)
    assert list(saved) == list(settings())
    expected = {name: value for name, value in given.items() if name in saved}
    # A text in place of a number is read as the number.
    expected |= {key: float(expected[key]) for key in ("learning_rate",) if key in expected}
    expected |= {key: int(expected[key]) for key in ("num_epochs",) if key in expected}
    assert {name: saved[name] for name in expected} == expected
    again = world.root / "files" / f"again_{name}"
    again.write_text(json.dumps(saved), encoding="utf-8")
    _, config = world.load(again)
    assert settings_of(config) == saved


# Values that the launcher passes on, and those that it takes for not given.
VALUES: dict[str, tuple[Any, ...]] = {
    "base_model": ("b",), "img_folder": ("d",), "output_folder": ("o",),
    "change_output_name": (None, "n"), "save_json_folder": (None, "x"),
    "load_json_path": (None, "y.json"), "json_load_skip_list": (None, ["a"]),
    "multi_run_folder": (None, "q"), "save_json_only": (True, False),
    "caption_dropout_rate": (None, 0.0, 0.1), "caption_dropout_every_n_epochs": (None, 0, 3),
    "caption_tag_dropout_rate": (None, 0.0, 0.2), "net_dim": (4, 128, None),
    "alpha": (0, 4, 64.0, None), "scheduler": ("linear", "cosine", "cosine_with_restarts",
    "polynomial", "constant", "constant_with_warmup"), "cosine_restarts": (1, 3, None, 0),
    "scheduler_power": (1.0, 2.0, None), "warmup_lr_ratio": (None, 0.0, 0.1),
    "learning_rate": (1e-4, None), "text_encoder_lr": (None, 5e-5), "unet_lr": (None, 1e-4),
    "num_workers": (0, 1, 4), "persistent_workers": (True, False), "batch_size": (1, 3),
    "num_epochs": (1, 7), "save_every_n_epochs": (None, 1, 2), "shuffle_captions": (True, False),
    "keep_tokens": (None, 0, 2), "max_steps": (None, 40), "tag_occurrence_txt_file": (True, False),
    "sort_tag_occurrence_alphabetically": (True, False),
    "train_resolution": (512, "512,768", 768), "min_bucket_resolution": (256, 320),
    "max_bucket_resolution": (960, 1024), "lora_model_for_resume": (None, "l.safetensors"),
    "save_state": (True, False), "load_previous_save_state": (None, "state", "step-000001.ckpt"),
    "training_comment": (None, "", "c ${x}"), "unet_only": (True, False),
    "text_only": (True, False), "reg_img_folder": (None, "r"), "clip_skip": (1, 2, None),
    "test_seed": (23, 0), "prior_loss_weight": (1.0, 0.5),
    "gradient_checkpointing": (True, False), "gradient_acc_steps": (None, 1, 4),
    "mixed_precision": ("no", "fp16", "bf16"), "save_precision": (None, "float", "fp16", "bf16"),
    "save_as": ("safetensors", "ckpt", "pt"), "caption_extension": (".txt", "txt", ".caption"),
    "max_clip_token_length": (None, 75, 150, 225), "buckets": (True, False),
    "xformers": (True, False), "use_8bit_adam": (False,), "cache_latents": (True, False),
    "color_aug": (True, False), "flip_aug": (True, False), "random_crop": (True, False),
    "vae": (None, "", "v"), "no_meta": (True, False), "log_dir": (None, "logs"),
    "bucket_reso_steps": (None, 64, 32), "bucket_no_upscale": (True, False),
    "v2": (True, False), "v_parameterization": (True, False),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_any_values_of_all_65_come_back_as_they_were(world: SettingsWorld, seed: int) -> None:
    chance = random.Random(seed)
    values = {name: chance.choice(VALUES[name]) for name in settings()}
    path = world.root / f"any{seed}.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    experiment, config = world.load(path)
    assert settings_of(config) == values
    assert not told(experiment, Verdict.refused)


def test_what_names_a_file_comes_back_too(world: SettingsWorld) -> None:
    values = json.loads(world.file("launcher_all.json").read_text(encoding="utf-8")) | {
        "vae": "other.safetensors", "lora_model_for_resume": "begun.safetensors",
        "load_previous_save_state": "step-000010.ckpt", "unet_only": False, "text_only": True,
        "scheduler": "polynomial", "max_steps": None, "caption_dropout_rate": None,
        "cache_latents": True, "xformers": True, "save_precision": None, "buckets": False,
        "num_workers": 0, "v2": False, "clip_skip": None, "log_dir": None,
    }  # fmt: skip
    path = world.root / "files" / "others.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    _, config = world.load(path)
    assert settings_of(config) == values
    assert config.resume == "step-000010.ckpt"
    assert config.scheduler.power == 2.0


def test_the_file_of_all_settings_leaves_few_at_their_default() -> None:
    given = json.loads((FILES / "launcher_all.json").read_text(encoding="utf-8"))
    assert list(given) == list(settings())


def test_an_override_beside_a_loaded_file_is_what_is_saved(world: SettingsWorld) -> None:
    path = world.file("launcher_all.json")
    world.load(path)
    config = world.compose(
        f"experiment=loaded_{path.stem}", "trainer.max_steps=-1", "trainer.max_epochs=9"
    )
    saved = settings_of(config)
    assert (saved["num_epochs"], saved["max_steps"]) == (9, None)  # the file says 7 and 40
    assert saved["load_json_path"] == "first.json"  # untouched


def test_a_setting_that_is_null_is_not_a_setting_left_out(write: Callable[..., Path]) -> None:
    # The launcher takes 128 for a rank left out, and passes no null on: sd-scripts takes 4.
    assert "rank: 128" in load_settings(write()).text
    assert "rank: 4\n" in load_settings(write(net_dim=None)).text


def test_skipped_settings_are_left_out_whatever_the_file_says(write: Callable[..., Path]) -> None:
    path = write(net_dim=7, alpha=3.5, json_load_skip_list=["net_dim"])
    untouched = load_settings(path)
    assert untouched.mapped["adapter.rank"] == (7, "net_dim")  # the file's list counts for nothing
    skipping = load_settings(path, skip=["alpha", "json_load_skip_list"])
    assert skipping.mapped["adapter.rank"] == (7, "net_dim")
    assert "adapter.alpha" not in skipping.mapped
    assert told(skipping, Verdict.skipped).keys() == {"alpha", "json_load_skip_list"}
    by_its_other_name = load_settings(path, skip=["network_alpha"])
    assert "adapter.alpha" not in by_its_other_name.mapped


def test_names_of_the_forms_are_understood_in_the_launchers_file(
    write: Callable[..., Path],
) -> None:
    mapped = load_settings(write(network_dim=5, train_batch_size="3", lr_scheduler="cosine")).mapped
    assert mapped["adapter.rank"] == (5, "net_dim")
    assert mapped["data.batch_size"] == (3, "batch_size")
    assert mapped["scheduler"] == ("cosine", "scheduler")


def test_eight_bit_adam_is_the_recipe_of_that_name(write: Callable[..., Path]) -> None:
    mapped = load_settings(write(use_8bit_adam=True)).mapped
    assert mapped["optimizer"] == ("adamw8bit", "use_8bit_adam")


def test_typos_of_a_toml_are_told_with_the_nearest_name() -> None:
    found = told(load_settings(FILES / "training_typos.toml"), Verdict.mistake)
    assert found["min_snr_gama"].endswith("Did you mean min_snr_gamma?")
    assert found["loss_type"] == (
        "is hubber, which that program does not know. Did you mean huber?"
    )
    assert "is the text '1e-4'" in found["learning_rate"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # sd-scripts (get_huber_threshold_if_needed) multiplies the constant threshold by the scale
        # and does not look at the scale with snr; other losses have no threshold.
        ('loss_type = "huber"\nhuber_schedule = "constant"', 0.4),
        ('loss_type = "smooth_l1"\nhuber_schedule = "snr"', 0.2),
        ('loss_type = "l2"\nhuber_schedule = "constant"', None),
    ],
)
def test_the_huber_threshold_is_the_one_that_was_trained_with(
    tmp_path: Path, given: str, expected: float | None
) -> None:
    path = tmp_path / "huber.toml"
    least = 'pretrained_model_name_or_path = "b"\ntrain_data_dir = "i"\n'
    path.write_text(f"{least}{given}\nhuber_c = 0.2\nhuber_scale = 2.0\n", encoding="utf-8")
    mapped = load_settings(path).mapped
    assert mapped.get("objective.huber_c", (None,))[0] == expected
    assert ("objective.huber_schedule" in mapped) == (expected is not None)


def test_a_misspelt_value_is_not_taken_over(world: SettingsWorld) -> None:
    _, config = world.load(world.file("training_typos.toml"))
    assert config.objective.loss is Loss.l2
    assert config.data.captions.caption_dropout <= 1


def test_what_our_rules_refuse_is_left_out_with_the_sentence() -> None:
    experiment = load_settings(FILES / "launcher_typos.json")
    [text] = told(experiment, Verdict.refused).values()
    assert "data.resolution is 500; it must be a multiple of data.buckets.step (64)." in text
    assert "500" not in experiment.text.partition("kept_settings")[0]


def test_a_metadata_file_is_taken_for_what_it_is(world: SettingsWorld) -> None:
    experiment, config = world.load(world.file("metadata.json"))
    assert experiment.original.format is Format.metadata
    assert (config.adapter.rank, config.adapter.alpha, config.adapter.conv_rank) == (8, 4.0, 4)
    assert (config.scheduler.kind.name, config.scheduler.warmup_steps) == ("cosine", 10)
    assert (config.model.max_tokens, config.model.clip_skip, config.seed) == (225, 2, 5)
    assert "pretrained_model_name_or_path" in told(experiment, Verdict.no_equivalent)


def test_lycoris_of_the_forms_is_a_kind_of_adapter(world: SettingsWorld) -> None:
    _, config = world.load(world.file("kohya_ss_locon.json"))
    assert config.adapter.kind is AdapterKind.loha
    assert config.adapter.conv_rank == 8


def test_subsets_become_sources_and_class_images(world: SettingsWorld) -> None:
    _, config = world.load(world.file("dataset.toml"))
    fox, city = config.data.sources
    assert (Path(fox.image_dir).name, fox.repeats, city.repeats) == ("10_fox", 10, 2)
    assert fox.captions == {"shuffle_tags": True, "keep_tags": 1, "prefix": "photo of"}
    assert city.captions == {"shuffle_tags": False, "keep_tags": 1}  # the subset's word counts
    assert Path(str(config.data.prior.image_dir)).name == "1_animal"


def test_warm_up_is_a_share_in_per_cent_in_the_forms(world: SettingsWorld) -> None:
    _, config = world.load(world.file("kohya_ss_sd15.json"))
    assert config.scheduler.warmup_fraction == pytest.approx(0.1)
    assert config.objective.multires_iterations == 6  # from the field of additional parameters


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.json", None, "is not a file"),
        ("broken.json", "{", "is not JSON"),
        ("list.json", "[]", "is not a table of settings"),
        ("broken.toml", "a = ", "is not TOML"),
        ("empty.toml", "", "holds no settings"),
        ("open.sh", "train --a 'b", "is not a command line"),
        ("none.sh", "ls", "has no options"),
        ("x.ini", "a=1", "must end in .json"),
        ("weights.safetensors", "abc", "weights.safetensors"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: str | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(Exception, match=reason) as refusal:
        load_settings(path)
    assert hasattr(refusal.value, "problems")


def test_an_experiment_that_is_there_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("name: mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is there already"):
        write_experiment(load_settings(FILES / "command.sh"), out)
    assert out.read_text(encoding="utf-8") == "name: mine"
