"""What foreign settings mean, number by number, and that none of them goes unsaid.

What the programs take for a setting is written down here from their own argument parsers and
signatures: LyCORIS gives convolutions the rank of linear layers, `networks.lora` an alpha of 1;
`lion_pytorch.Lion` and `prodigyopt.Prodigy` decay nothing, epochs overrule steps in sd-scripts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loralab.app.composition import compose_config
from loralab.app.settings.backward import settings_of
from loralab.app.settings.experiment import Experiment, load_settings, write_experiment
from loralab.app.settings.original import Verdict
from loralab.app.settings.report import show_report
from loralab.config.choices import AdapterKind
from loralab.config.records import RunConfig
from loralab.errors import ConfigError

LEAST = "--pretrained_model_name_or_path=/m/base.safetensors --train_data_dir=/d --output_dir=/o "
Loaded = tuple[Experiment, RunConfig]


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Loaded]:
    """Write a file, load it, and compose the experiment that comes of it."""

    def loaded(name: str, content: str, **others: str) -> Loaded:
        for other, text in others.items():
            (tmp_path / f"{other}.toml").write_text(text, encoding="utf-8")
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        experiment = load_settings(path)
        out = tmp_path / "conf" / "experiment" / "loaded.yaml"
        out.unlink(missing_ok=True)
        write_experiment(experiment, out)
        given = ["experiment=loaded"]
        if "model.path" not in experiment.mapped:
            given.append("model.path=/m")
        return experiment, compose_config(given, config_dir=tmp_path / "conf")

    return loaded


def told(experiment: Experiment) -> dict[str, str]:
    return {row.name: row.text for row in experiment.findings if row.verdict is not Verdict.idle}


def form(**values: object) -> str:
    least = {"LoRA_type": "Standard", "pretrained_model_name_or_path": "/m", "train_data_dir": "/d"}
    return json.dumps({**least, **values})


# Command lines and scripts.


def test_a_script_of_a_shell_is_read_as_the_shell_reads_it(load: Callable[..., Loaded]) -> None:
    text = f"""#!/bin/bash
cd /opt/sd-scripts && source venv/bin/activate   # don't forget
BASE="/models/v1.safetensors"
RANK=12
accelerate launch --mixed_precision="no" --num_cpu_threads_per_process=2 "train_network.py" \\
  {LEAST} --pretrained_model_name_or_path="$BASE" --network_dim=${{RANK}} \\
  --output_name="" --caption_prefix="a; b && c" --mixed_precision=bf16 && echo --done
"""
    experiment, config = load("train.sh", text)
    assert (config.model.path, config.adapter.rank) == ("/models/v1.safetensors", 12)
    assert config.data.captions.prefix == "a; b && c"
    assert config.trainer["precision"] == "bf16-mixed"  # the launcher's own word is another one
    assert config.name == "last"
    assert "launching program" in told(experiment)["num_cpu_threads_per_process"]
    assert "is given twice" in told(experiment)["pretrained_model_name_or_path"]


def test_paths_of_windows_keep_their_backslashes(load: Callable[..., Loaded]) -> None:
    text = r"""@echo off
rem don't
set OUT=D:\out
accelerate launch .\train_network.py ^
 --pretrained_model_name_or_path=D:\m\v1.safetensors --train_data_dir="D:\data sets\img" ^
 --output_dir=%OUT% --xformers
pause
"""
    experiment, config = load("train.bat", text)
    assert config.model.path == r"D:\m\v1.safetensors"
    assert config.data.image_dir == r"D:\data sets\img"
    assert config.output_dir == r"D:\out"
    assert "xformers" not in {
        row.name for row in experiment.findings if row.verdict is Verdict.mistake
    }


def test_a_variable_that_is_not_set_is_told_and_left_out(load: Callable[..., Loaded]) -> None:
    experiment, config = load("train.sh", f"train_network.py {LEAST} --network_dim=$RANK")
    assert config.adapter.rank == 4  # sd-scripts' own
    assert "is $RANK, and the file does not set this variable" in told(experiment)["network_dim"]


def test_words_that_belong_to_no_option_are_told(load: Callable[..., Loaded]) -> None:
    experiment, config = load("train.txt", f"{LEAST} --resolution 512 768 --cache_latents False")
    assert "stands after --resolution" in told(experiment)["768"]
    assert "sd-scripts refuses one" in told(experiment)["cache_latents"]
    assert not config.data.latent_cache.enabled


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("flux_train_network.py --network_dim 4", "runs flux_train_network.py; only"),
        ("train_network.py --seed 1\ntrain_network.py --seed 2", "holds 2 trainings"),
    ],
)
def test_what_is_not_one_lora_training_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "train.sh"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=reason):
        load_settings(path)


def test_files_named_on_a_command_line_are_read_along(load: Callable[..., Loaded]) -> None:
    experiment, config = load(
        "train.sh",
        f"train_network.py --config_file config --dataset_config=images.toml {LEAST} --seed 3",
        config="[a]\nnetwork_dim = 24\nseed = 9\n",
        images='[[datasets]]\nbatch_size = 6\n[[datasets.subsets]]\nimage_dir = "/d/a"\n',
    )
    assert (config.adapter.rank, config.seed, config.data.batch_size) == (24, 3, 6)
    assert config.data.image_dir is None
    assert config.data.sources[0].image_dir == "/d/a"
    assert config.data.layout.name == "folder"
    assert "dataset_config overrules it" in told(experiment)["train_data_dir"]
    experiment, _ = load("train.sh", f"train_network.py {LEAST} --config_file elsewhere.toml")
    assert "load it by itself" in told(experiment)["config_file"]


# Networks.


def test_the_kohya_module_gives_convolutions_an_alpha_of_one(load: Callable[..., Loaded]) -> None:
    _, config = load(
        "x.txt", f"{LEAST} --network_dim 8 --network_alpha 0 --network_args conv_dim=4"
    )
    assert (config.adapter.rank, config.adapter.alpha) == (8, 8.0)
    assert (config.adapter.conv_rank, config.adapter.conv_alpha) == (4, 1.0)
    assert config.adapter.unet.targets == ["full"]


def test_lycoris_gives_convolutions_the_rank_of_the_others(load: Callable[..., Loaded]) -> None:
    line = f"{LEAST} --network_module=lycoris.kohya --network_dim=16 --network_alpha=8 "
    _, config = load("x.txt", line + '--network_args "algo=loha"')
    assert config.adapter.kind is AdapterKind.loha
    assert (config.adapter.conv_rank, config.adapter.conv_alpha) == (16, 8.0)
    _, config = load("x.txt", line + '--network_args "algo=lokr" "factor=8" "preset=attn-only"')
    assert config.adapter.kind is AdapterKind.lokr
    assert (config.adapter.decompose_factor, config.adapter.unet.targets) == (8, ["attention"])
    _, config = load("x.txt", line + '--network_args "algo=locon" "use_tucker=True"')
    assert config.adapter.kind is AdapterKind.tucker


def test_arguments_of_the_network_are_checked_one_by_one(load: Callable[..., Loaded]) -> None:
    line = f"{LEAST} --network_args conv_dim=auto conv_dmi=4 block_dims=2,x preset=mine algo=lora"
    experiment, config = load("x.txt", line + " --network_module lycoris.kohya")
    found = told(experiment)
    assert "'auto', where a whole number belongs" in found["conv_dim"]
    assert found["conv_dmi"].endswith("Did you mean conv_dim?")
    assert "where whole numbers with commas between belong" in found["block_dims"]
    assert "mine is no preset of targets here" in found["preset"]
    assert config.adapter.unet.targets == ["full"]


# Optimizers.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--optimizer_type Lion", {"weight_decay": 0.0}),
        ("--optimizer_type=Lion --optimizer_args weight_decay=0.1", {"weight_decay": 0.1}),
        (
            "--optimizer_type Prodigy --learning_rate 1 --optimizer_args betas=0.9,0.99",
            {"weight_decay": 0.0, "use_bias_correction": False, "betas": [0.9, 0.99]},
        ),
        ("--optimizer_type AdaFactor", {"relative_step": True, "lr": None}),
        (
            "--optimizer_type AdaFactor --learning_rate 1e-3 --optimizer_args relative_step=False "
            "warmup_init=False",
            {"relative_step": False, "scale_parameter": True, "lr": 1e-3},
        ),
        ("--optimizer_type SGDNesterov", {"momentum": 0.9, "nesterov": True}),
        ("--optimizer_type torch.optim.AdamW --learning_rate 3e-4", {"lr": 3e-4}),
    ],
)
def test_an_optimizer_has_the_values_of_its_library(
    load: Callable[..., Loaded], words: str, expected: dict[str, object]
) -> None:
    _, config = load("x.txt", f"{LEAST} {words}")
    assert {key: config.optimizer[key] for key in expected} == expected


def test_arguments_that_the_optimizer_does_not_take_are_left_out(
    load: Callable[..., Loaded],
) -> None:
    line = f"{LEAST} --optimizer_type AdamW --optimizer_args weight_decy=0.1 eps=1e-6 nonsense"
    experiment, config = load("x.txt", line)
    texts = [row.text for row in experiment.findings if row.name == "optimizer_args"]
    assert any("Did you mean weight_decay?" in text for text in texts)
    assert any("'nonsense', which is not NAME=VALUE" in text for text in texts)
    assert "weight_decy" not in config.optimizer
    assert config.optimizer["eps"] == 1e-6
    experiment, config = load("x.txt", f"{LEAST} --optimizer_type a.B --optimizer_args alpha=5")
    assert "adamw is taken" in told(experiment)["optimizer_type"]
    assert told(experiment)["optimizer_args"] == "belong to that optimizer."
    assert "alpha" not in config.optimizer


# Lengths, sizes, caches, files.


def test_epochs_overrule_steps_in_sd_scripts_and_steps_epochs_in_the_launcher(
    load: Callable[..., Loaded],
) -> None:
    line = f"{LEAST} --max_train_steps 2000 --max_train_epochs 10 --save_n_epoch_ratio 4"
    _, config = load("x.txt", line)
    assert (config.trainer["max_epochs"], config.trainer["max_steps"]) == (10, -1)
    assert config.export.every_n_epochs == 2
    _, config = load("x.json", json.dumps(
        {"base_model": "m", "img_folder": "d", "num_epochs": 10, "max_steps": 50}
    ))  # fmt: skip
    assert (config.trainer["max_epochs"], config.trainer["max_steps"]) == (None, 50)


@pytest.mark.parametrize("text", ["512,768", "512x768", "[512, 768]"])
def test_two_sides_are_one_shape_without_buckets(load: Callable[..., Loaded], text: str) -> None:
    value = text if text.startswith("[") else f'"{text}"'
    content = f'pretrained_model_name_or_path = "m"\ntrain_data_dir = "d"\nresolution = {value}\n'
    _, config = load("x.toml", content)
    assert config.data.buckets.enabled
    assert config.data.buckets.sizes == ["512x768"]
    saved = settings_of(config)
    assert (saved["train_resolution"], saved["buckets"]) == ("512,768", False)
    _, config = load("x.toml", content + "enable_bucket = true\n")
    assert config.data.buckets.sizes == []
    assert config.data.resolution == 640


def test_a_cache_on_disk_is_a_cache(load: Callable[..., Loaded]) -> None:
    _, config = load("x.txt", f"{LEAST} --cache_latents_to_disk")
    assert config.data.latent_cache.enabled


def test_what_files_say_of_themselves_is_kept(load: Callable[..., Loaded]) -> None:
    _, config = load("x.txt", f'{LEAST} --metadata_title "My fox" --metadata_tags "red, fox" '
                     "--metadata_author me --metadata_license mit")  # fmt: skip
    spec = config.export.modelspec
    assert (spec.title, spec.tags, spec.author, spec.license) == (
        "My fox", ["red", "fox"], "me", "mit"
    )  # fmt: skip


def test_texts_of_a_file_are_never_references(load: Callable[..., Loaded]) -> None:
    _, config = load("x.json", json.dumps(
        {"base_model": "m", "img_folder": "d", "training_comment": "${oc.env:HOME} 5"}
    ))  # fmt: skip
    assert config.export.comment == "${oc.env:HOME} 5"
    assert settings_of(config)["training_comment"] == "${oc.env:HOME} 5"


# The forms of kohya_ss.


def test_forms_pass_on_what_belongs_to_what_is_chosen(load: Callable[..., Loaded]) -> None:
    experiment, config = load("x.json", form(
        conv_dim=8, conv_alpha=4, noise_offset_type="Original", noise_offset=0.05,
        multires_noise_iterations=6, multires_noise_discount=0.3, lr_warmup=10, lr_warmup_steps=0,
        lr_scheduler="cosine", max_train_epochs=0, max_train_steps=0, epoch=8, learning_rate=2e-4,
        text_encoder_lr=0, unet_lr=1e-4, optimizer="AdamW", seed="",
        optimizer_args='"betas=0.9,0.98" weight_decay=0.05', LyCORIS_preset="attn-mlp",
    ))  # fmt: skip
    assert config.adapter.conv_rank is None
    assert config.adapter.unet.targets == ["sd_scripts"]
    assert (config.objective.noise_offset, config.objective.multires_iterations) == (0.05, 0)
    assert config.scheduler.warmup_fraction == pytest.approx(0.1)
    assert (config.trainer["max_epochs"], config.trainer["max_steps"]) == (8, -1)
    assert not config.adapter.text_encoder.enabled  # the form turns a rate of 0 into unet_only
    assert config.adapter.unet.lr == 1e-4
    assert (config.optimizer["betas"], config.optimizer["weight_decay"]) == ([0.9, 0.98], 0.05)
    assert told(experiment)["conv_dim"] == "LoRA_type is Standard, so the form drops it."
    assert "noise_offset_type is Original" in told(experiment)["multires_noise_iterations"]


def test_two_rates_of_zero_in_a_form_are_none(load: Callable[..., Loaded]) -> None:
    _, config = load("x.json", form(learning_rate=3e-4, text_encoder_lr=0, unet_lr=0))
    assert config.optimizer["lr"] == 3e-4
    for part in (config.adapter.unet, config.adapter.text_encoder):
        assert part.enabled
        assert part.lr is None
        assert part.lr_scale == 1.0


def test_prompts_of_a_form_are_the_prompts_themselves(load: Callable[..., Loaded]) -> None:
    text = "a cat --w 512 --n bad\n\n# none\na dog" + " very" * 100
    experiment, config = load("x.json", form(sample_prompts=text, sample_every_n_steps=50))
    assert config.preview.prompts == ["a cat", "a dog" + " very" * 100]
    assert "of single lines are left out" in told(experiment)["sample_prompts"]
    experiment, config = load("x.json", form(sample_prompts=text, sample_every_n_epochs=1))
    assert config.preview.prompts == []
    assert "count steps" in told(experiment)["sample_prompts"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("LyCORIS/LoKr", "lokr"), ("Kohya DyLoRA", "dylora"), ("LyCORIS/Diag-OFT", "oft")],
)
def test_kinds_of_the_forms(load: Callable[..., Loaded], kind: str, expected: str) -> None:
    experiment, config = load("x.json", form(LoRA_type=kind, network_dim=4))
    assert config.adapter.kind.name == expected
    assert experiment.mapped["adapter"][0] == expected


# Metadata.


def test_metadata_tells_of_optimizer_and_network_with_their_arguments(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    fields = {
        "ss_base_model_version": "sdxl_base_v1-0", "ss_network_module": "lycoris.kohya",
        "ss_network_dim": "16", "ss_network_alpha": "8.0", "ss_tag_frequency": "{}",
        "ss_network_args": '{"algo": "loha", "conv_dim": "8", "conv_alpha": "4"}',
        "ss_optimizer": "prodigyopt.prodigy.Prodigy(weight_decay=0.02,betas=(0.9, 0.95))",
        "ss_learning_rate": "1.0", "ss_max_train_steps": "1200", "ss_num_epochs": "10",
    }  # fmt: skip
    save_file({"a": torch.zeros(1)}, path, metadata=fields)
    experiment = load_settings(path)
    mapped = {key: value for key, (value, _) in experiment.mapped.items()}
    assert (mapped["model"], mapped["adapter"], mapped["optimizer"]) == ("sdxl", "loha", "prodigy")
    assert (mapped["adapter.conv_rank"], mapped["adapter.conv_alpha"]) == (8, 4.0)
    assert (mapped["optimizer.weight_decay"], mapped["optimizer.betas"]) == (0.02, [0.9, 0.95])
    assert (mapped["trainer.max_steps"], mapped["optimizer.lr"]) == (1200, 1.0)
    assert "lr_scale: 1.0" in experiment.text  # no rate of its own: that of the optimizer
    assert not [row for row in experiment.findings if row.verdict is Verdict.refused]


def test_metadata_that_is_damaged_is_told(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    fields = {"ss_network_args": "{bad", "ss_network_dim": "4", "ss_seed": "x"}
    save_file({"a": torch.zeros(1)}, path, metadata=fields)
    found = told(load_settings(path))
    assert "is no table of arguments" in found["ss_network_args"]
    assert "'x', where a whole number belongs" in found["test_seed"]


# Mistakes.


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ('{"net_dim": 8, "net_dim": 16}', "net_dim", "given twice, 8 and 16"),
        ('{"net_dim": 8, "network_dim": 4}', "net_dim", "as net_dim and as network_dim"),
        ('{"learning_rate": NaN}', "learning_rate", "'NaN', where a number belongs"),
        ('{"max_steps": Infinity}', "max_steps", "'Infinity', where a whole number belongs"),
        ('{"num_epochs": 2.5}', "num_epochs", "2.5, where a whole number belongs"),
        ('{"training_comment": {"a": 1}}', "training_comment", "where text belongs"),
        ('{"cache_latents": "False"}', "cache_latents", "any text but an empty one is true there"),
        ('{"train_resolution": "512*512"}', "train_resolution", "a side in px, or WIDTH,HEIGHT"),
        ('{"save_json_onyl": true}', "save_json_onyl", "Did you mean save_json_only?"),
    ],
)
def test_mistakes_of_a_json_are_told(
    load: Callable[..., Loaded], text: str, name: str, reason: str
) -> None:
    content = '{"base_model": "m", "img_folder": "d", ' + text.removeprefix("{")
    experiment, _ = load("x.json", content)
    found = [row.text for row in experiment.findings if row.verdict is Verdict.mistake]
    assert any(reason in line for line in found), found
    assert name in told(experiment)


def test_a_name_to_skip_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"base_model": "m", "img_folder": "d", "net_dim": 8}', encoding="utf-8")
    with pytest.raises(ConfigError) as refusal:
        load_settings(path, skip=["net_dmi", "nothing"])
    assert [str(problem) for problem in refusal.value.problems] == [
        "--skip names net_dmi, which is no setting. Did you mean net_dim?",
        "--skip names nothing, which is no setting. Leave it out.",
    ]
    assert "adapter.rank" not in load_settings(path, skip=[" network_dim "]).mapped


def test_warm_up_of_the_forms_in_the_launchers_file_is_per_cent(
    load: Callable[..., Loaded],
) -> None:
    _, config = load("x.json", json.dumps({
        "base_model": "m", "img_folder": "d", "lr_warmup": "10", "scheduler": "cosine",
        "epoch": 3, "max_resolution": "512,512",
    }))  # fmt: skip
    assert config.scheduler.warmup_fraction == pytest.approx(0.1)
    assert (config.trainer["max_epochs"], config.data.resolution) == (3, 512)


# Datasets.

DATASET = """
[general]
enable_bucket = true
shuffle_caption = "yes"
[[datasets]]
resolution = [512, 512]
batch_size = "2"
  [[datasets.subsets]]
  image_dir = "/d/a"
  num_repeats = "three"
  keep_tokens = "1"
  conditioning_data_dir = "/d/masks"
  face_crop_aug_range = "1,2"
  [[datasets.subsets]]
  image_dir = "/d/reg"
  is_reg = true
  caption_extension = ".cap"
  flip_aug = true
"""


@pytest.mark.parametrize("ending", ["toml", "json"])
def test_options_of_datasets_have_types_and_none_is_lost(
    load: Callable[..., Loaded], ending: str
) -> None:
    import tomllib

    text = DATASET if ending == "toml" else json.dumps(tomllib.loads(DATASET))
    experiment, config = load(f"dataset.{ending}", text)
    [source] = config.data.sources
    assert (source.repeats, source.captions) == (1, {"keep_tags": 1})
    assert (source.mask_dir, config.data.masks.name) == ("/d/masks", "file")
    assert config.data.prior.caption_extension == ".cap"
    found = told(experiment)
    assert "where true or false belongs" in found["general.shuffle_caption"]
    assert "'three', where a whole number" in found["datasets[0].subsets[0].num_repeats"]
    assert "read as the number 1" in found["datasets[0].subsets[0].keep_tokens"]
    assert "crops follow no faces" in found["datasets[0].subsets[0].face_crop_aug_range"]
    assert "class images are shown as" in found["datasets[0].subsets[1].flip_aug"]


@pytest.mark.parametrize("content", ["datasets = 3", "datasets = [3]", "[[datasets]]\nsubsets=[1]"])
def test_datasets_that_are_no_tables_are_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "dataset.toml"
    path.write_text(content, encoding="utf-8")
    try:
        texts = [row.text for row in load_settings(path).findings]
    except ConfigError as error:
        texts = [str(problem) for problem in error.problems]
    assert any("write [[datasets" in text for text in texts)


# Nothing goes unsaid.


def names_in(path: Path) -> set[str]:
    """Return the settings that stand in a file, by a plain reading of it."""
    import tomllib

    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        tables = tomllib.loads(text)
        flat = [value if isinstance(value, dict) else {key: value} for key, value in tables.items()]
        return {name for table in flat for name in table if name != "datasets"}
    if path.suffix == ".json":
        return set(json.loads(text))
    words = text.replace("=", " ").replace("\\\n", " ").split()
    return {word[2:] for word in words if word.startswith("--")}


FILES = Path(__file__).parents[1] / "settings_files"


@pytest.mark.parametrize(
    "name", [path.name for path in sorted(FILES.iterdir()) if path.name != "metadata.json"]
)
def test_every_name_of_a_file_is_in_the_report(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    show_report(load_settings(FILES / name))
    shown = capsys.readouterr().out.replace("|", " ").replace("│", " ")
    words = {word.strip(",:").rpartition(".")[2] for word in shown.split()}
    missing = names_in(FILES / name) - words - {"list_of_json_to_run", "network_args"}
    assert not missing
