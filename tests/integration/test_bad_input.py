"""Wrong commands: exit code 2, one sentence per problem, no traceback, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli import Cli, Outcome
from tests.integration.conftest import Disk

# What the typed records and Hydra know: answered before torch is imported.
RECORDS = {
    "misspelt key": ("data.imagedir=x", ["data.imagedir", "Did you mean data.image_dir?"]),
    "misspelt group key": ("adpter.rank=4", ["adpter", "Did you mean adapter?"]),
    "misspelt group": ("adaptr=lora", ["adaptr", "Did you mean adapter?"]),
    "misspelt option": ("adapter=lroa", ["adapter=lroa does not exist", "adapter=lora?"]),
    "group of nothing": (
        "model=null",
        ["model is null; it must be one of its options: demo, sd15"],
    ),
    "demo preset on another base": (
        "experiment=demo model=sd15",
        ["experiment=demo is made for the embedded base", "model=sd15", "experiment=sd15_style"],
    ),
    "misspelt optimizer key": (
        "optimizer.lrr=1",
        ["optimizer.lrr", "optimizer.lr?", "conf/optimizer/"],
    ),
    "misspelt callback": ("callbacks.progres=null", ["callbacks.progres", "callbacks.progress?"]),
    "new key": ("+adapter.rnk=4", ["adapter.rnk is not an option", "adapter.rank?"]),
    "new group": ("+foo.bar=1", ["foo is not an option", "Allowed: adapter"]),
    "plus on a known key": ("+adapter.rank=4", ["write adapter.rank=4, without the +"]),
    "removed key": ("~adapter.rank", ["~adapter.rank", "give it a value instead"]),
    "word for a number": ("adapter.rank=eight", ["adapter.rank is 'eight'", "a whole number"]),
    "fraction for a count": ("seed=1.5", ["seed is 1.5", "a whole number"]),
    "unknown word": ("model.prediction_type=vpred", ["'vpred'", "epsilon, v_prediction"]),
    "unknown word in a list": ("export.layouts=[a1111]", ["export.layouts", "kohya, diffusers"]),
    "text for a list": ("adapter.unet.targets=attention", ["'attention'", "[a, b]"]),
    "null for a group": ("data.captions=null", ["data.captions is 'null'", "a group of keys"]),
    "below the range": ("data.batch_size=0", ["data.batch_size is 0", "at least 1"]),
    "above the range": ("adapter.dropout=1.0", ["adapter.dropout is 1.0", "0 and 0.999"]),
    "not a number": ("adapter.alpha=nan", ["adapter.alpha is nan", "a finite number"]),
    "folder of Hydra": (
        "hydra.run.dir=x adapter.rank=2",
        ["hydra.run.dir has no use here", "output_dir, name and run_id"],
    ),
    "key of another recipe": (
        "optimizer=prodigy optimizer.fused=true",
        ["optimizer.fused is not in this recipe", "Allowed: betas, d0, d_coef"],
    ),
    "option with a slash": (
        "optimizer=mine/adamw",
        ["optimizer=mine/adamw does not exist", "Did you mean optimizer=adamw?"],
    ),
    "launcher misspelt": (
        "hydra/launcher=joblb -m optimizer.lr=1e-4,1e-3",
        ["hydra/launcher=joblb does not exist", "Did you mean hydra/launcher=joblib?"],
    ),
    "folder of presets": (
        "--config-dir=nowhere",
        ["--config-dir is nowhere, which is no folder", "YAML files as in conf/"],
    ),
    "no key": ("rank", ["'rank' is not an override", "key=value"]),
    "open bracket": ("optimizer.betas=[0.9", ["'optimizer.betas=[0.9' is not an override"]),
    "steps and epochs": (
        "trainer.max_steps=200 trainer.max_epochs=2",
        ["max_steps is 200", "max_epochs is 2", "null"],
    ),
    "neither": ("trainer.max_steps=null", ["max_steps is null and trainer.max_epochs is null"]),
    "long warm-up": (
        "scheduler.warmup_steps=500 trainer.max_steps=200",
        ["warmup_steps is 500", "max_steps (200)"],
    ),
    "empty timesteps": (
        "objective.min_timestep=900 objective.max_timestep=500",
        ["objective.min_timestep is 900", "below objective.max_timestep (500)"],
    ),
    "odd bucket step": ("data.buckets.step=12", ["data.buckets.step is 12", "8", "Use 16"]),
    "bucket step against resolution": ("data.resolution=72", ["is 72", "(16)", "Use 64"]),
    "own images on the demo base": (
        "data.image_dir=photos",
        ["model.path is the demo base", "data.image_dir is photos", "model.allow_demo=true"],
    ),
    "missing values": (
        "experiment=sd15_style",
        ["Set model.path=FOLDER", "Set data.image_dir=FOLDER", "2 problems"],
    ),
    "unknown metric": ("optimized_metric=val/los", ["optimized_metric is val/los", "val/loss"]),
    "folder in a name": ("name=a/b", ["name is 'a/b'", "letters, digits"]),
    "several at once": (
        "adapter.rnk=4 optimizer.lrr=1 data.batch_size=none model=sd15x",
        ["4 problems", "adapter.rank?", "optimizer.lr?", "'none'", "model=sd15?"],
    ),
    "several values at once": (
        "data.batch_size=0 adapter.dropout=2 seed=-1",
        ["3 problems", "data.batch_size is 0", "adapter.dropout is 2.0", "seed is -1"],
    ),
}

# Mistakes in a YAML file of the user's own.
FILES = {
    "misspelt key": (
        "data: {batchsize: 2}",
        ["In experiment/bad.yaml: data.batchsize is not an option", "data.batch_size?"],
    ),
    "wrong type": ("adapter: {rank: eight}", ["In experiment/bad.yaml: adapter.rank is 'eight'"]),
    "unknown group": ("foo: 3", ["In experiment/bad.yaml: foo is not an option"]),
    "unknown option": ("defaults: [override /model: sd99]", ["model=sd99 does not exist"]),
    "no YAML": ("data: [1", ["bad.yaml, line", "is not YAML", "mend the file"]),
}

# What takes the libraries, the base and the images: answered before weights are loaded.
WORLD = {
    "target of no layer": (
        "adapter.unet.targets=[to_q,to_z]",
        ["adapter.unet.targets holds 'to_z'", "nearest: to_v, to_q, to_k", "presets: attention"],
    ),
    "target in the text encoder": (
        "adapter.text_encoder.targets=[qproj]",
        ["adapter.text_encoder.targets holds 'qproj'", "q_proj"],
    ),
    "broken pattern": ('adapter.unet.targets=["*to_q"]', ["'*to_q'", "not a regular expression"]),
    "no base": ("model.path=/nowhere", ["model.path is /nowhere", "nothing is downloaded"]),
    "base is a file": (
        "model.path=train.yaml",
        ["train.yaml", "cannot be read as a torch checkpoint", "download"],
    ),
    "base without tokenizer": (
        "model.path=broken/no_tokenizer",
        ["no_tokenizer/tokenizer/vocab.json", "missing", "tokenizer.json"],
    ),
    "base without weights": (
        "model.path=broken/no_weights",
        ["unet/diffusion_pytorch_model.safetensors is missing", "complete diffusers folder"],
    ),
    "cut weights": ("model.path=broken/cut", ["has", "header promises", "convert it again"]),
    "deep clip_skip": ("model.clip_skip=20", ["model.clip_skip is 20", "2 layers"]),
    "no folder": ("data.image_dir=/nowhere", ["data.image_dir is /nowhere", "does not exist"]),
    "empty folder": ("data.image_dir=empty", ["data.image_dir is empty", "png, jpg"]),
    "file for a folder": ("data.image_dir=train.yaml", ["this is a file", "existing folder"]),
    "damaged image and lost caption": (
        "data.image_dir=damaged",
        ["2 problems", "image_001.png is damaged", "image_002.png has no caption file"],
    ),
    "no held-out folder": ("validation.folder=/nowhere", ["validation.folder is /nowhere"]),
    "bucket step of the base": ("data.buckets.step=8", ["is 8", "multiple of 16", "Use 16"]),
    "foreign callable": (
        "optimizer._target_=os.system",
        ["optimizer._target_ is os.system", "not on the allow-list", "torch.optim"],
    ),
    "foreign callback": ("+callbacks.x._target_=subprocess.run", ["not on the allow-list"]),
    "misspelt callable": ("optimizer._target_=torch.optim.AdamX", ["does not exist", "Adam"]),
    "misspelt key in a recipe": (
        "+optimizer.weight_decai=0.1",
        ["optimizer.weight_decai is not an argument of torch.optim.AdamW", "weight_decay?"],
    ),
    "value the optimizer refuses": (
        "optimizer.betas=[0.9,2]",
        ["optimizer.betas is [0.9, 2]", "torch.optim.AdamW refuses", "index 1: 2"],
    ),
    "value the callback refuses": (
        "callbacks.checkpoint.every_n_steps=0",
        ["callbacks.checkpoint.every_n_steps is 0", "at least 1"],
    ),
    "fp16 without a GPU": ("trainer.precision=16-mixed", ["16-mixed", "GPU", "bf16-mixed"]),
    "half-precision adapter": (
        "trainer.precision=bf16-true",
        ["trainer.precision is bf16-true", "32-true", "model.weight_dtype=bf16"],
    ),
    "no such device": ("trainer.accelerator=gpu", ["trainer.accelerator is gpu", "trainer=cpu"]),
    "no device": ("trainer.devices=0", ["trainer.devices is 0", "above 0"]),
    "too many devices": ("trainer.devices=999", ["trainer.devices is 999", "this machine has"]),
    "warm-up of a run counted in epochs": (
        "trainer.max_steps=null trainer.max_epochs=1 scheduler.warmup_steps=90",
        ["scheduler.warmup_steps is 90", "steps of the run"],
    ),
    "no checkpoint": (
        "resume=/nowhere.ckpt",
        ["resume is /nowhere.ckpt", "neither a run folder nor a file"],
    ),
    "file that is no checkpoint": ("resume=train.yaml", ["train.yaml", "is missing"]),
    "output folder in a file": ("output_dir=train.yaml/x", ["output_dir:", "cannot be written"]),
    "cache folder in a file": (
        "data.latent_cache.directory=train.yaml/x",
        ["data.latent_cache.directory:", "cannot be written"],
    ),
    "weights of another model": (
        "model.path=broken/mixed",
        ["unet/diffusion_pytorch_model.safetensors cannot be loaded", "same model"],
    ),
    "several at once": (
        "adapter.unet.targets=[zz] validation.folder=/nowhere optimizer.betas=[1] "
        "trainer.precision=99 model.clip_skip=9",
        [
            "5 problems",
            "'zz'",
            "/nowhere",
            "optimizer.betas is [1]",
            "precision is 99",
            "clip_skip",
        ],
    ),
}


@pytest.fixture(scope="module")
def desk(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with an experiment on the tiny base, and everything that is broken."""
    root = tmp_path_factory.mktemp("desk")
    (root / "conf" / "experiment").mkdir(parents=True)
    (root / "conf" / "experiment" / "tiny.yaml").write_text(
        f"""# @package _global_
defaults:
  - smoke
  - override /model: sd15
  - override /data: folder
model: {{path: {world / "base"}, native_resolution: 64}}
data:
  image_dir: {world / "images"}
  batch_size: 2
  num_workers: 0
  buckets: {{step: 16, min_side: 32, max_side: 128}}
validation: {{folder: {world / "held_out"}}}
optimizer: {{lr: 1e-3, fused: false}}
trainer: {{max_steps: 4}}
""",
        encoding="utf-8",
    )
    (root / "train.yaml").write_text("a: file\n")
    (root / "empty").mkdir()
    shutil.copytree(world / "images", root / "damaged")
    picture = root / "damaged" / "image_001.png"
    picture.write_bytes(picture.read_bytes()[:-40])
    (root / "damaged" / "image_002.txt").unlink()
    for name in ("no_tokenizer", "no_weights", "cut", "mixed"):
        shutil.copytree(world / "base", root / "broken" / name)
    (root / "broken" / "no_tokenizer" / "tokenizer" / "vocab.json").unlink()
    weights = Path("unet/diffusion_pytorch_model.safetensors")
    (root / "broken" / "no_weights" / weights).unlink()
    cut = root / "broken" / "cut" / weights
    cut.write_bytes(cut.read_bytes()[:-100])
    config = root / "broken" / "mixed" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layers_per_block": 2}))
    return root


def assert_refused(outcome: Outcome, words: list[str], output: Path) -> None:
    """Assert one clean refusal that says all the words and leaves no run behind."""
    assert outcome.code == 2, outcome.text
    assert "Traceback" not in outcome.text
    text = outcome.text.splitlines()
    start = next(i for i, line in enumerate(text) if line.startswith("Nothing was started: "))
    sentences = [line for line in text[start + 1 :] if line]
    assert all(line.startswith("  - ") and line[-1] in ".?" for line in sentences), outcome.text
    for word in words:
        assert word in outcome.text, outcome.text
    assert not output.exists(), list(output.rglob("*"))


@pytest.mark.parametrize(("command", "words"), RECORDS.values(), ids=RECORDS.keys())
def test_records_refuse_before_torch_is_imported(
    light_cli: Cli, desk: Path, output: Path, command: str, words: list[str]
) -> None:
    outcome = light_cli(*command.split(), f"output_dir={output}", folder=desk, tell_torch=True)
    assert_refused(outcome, words, output)  # the exit code would be 102 with torch


@pytest.mark.parametrize(("text", "words"), FILES.values(), ids=FILES.keys())
def test_mistake_in_a_preset_is_told_with_its_file(
    light_cli: Cli, tmp_path: Path, output: Path, text: str, words: list[str]
) -> None:
    preset = tmp_path / "conf" / "experiment" / "bad.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text(f"# @package _global_\n{text}\n")
    outcome = light_cli(
        "--config-dir",
        "conf",
        "experiment=bad",
        "seed=3",
        f"output_dir={output}",
        folder=tmp_path,
        tell_torch=True,
    )
    assert_refused(outcome, ["one problem", *words], output)


@pytest.mark.parametrize(("command", "words"), WORLD.values(), ids=WORLD.keys())
def test_preflight_refuses_before_anything_is_written(
    cli: Cli, desk: Path, output: Path, command: str, words: list[str]
) -> None:
    outcome = cli(
        "--config-dir",
        "conf",
        "experiment=tiny",
        f"output_dir={output}",
        f"data.latent_cache.directory={desk / 'cache'}",
        *command.split(),
        folder=desk,
    )
    assert_refused(outcome, words, output)
    assert not (desk / "cache").exists()


def test_misspelt_key_beside_an_experiment_of_the_users_own(
    cli: Cli, desk: Path, output: Path
) -> None:
    outcome = cli(
        "--config-dir", "conf", "experiment=tiny", f"output_dir={output}", "seeed=1", folder=desk
    )
    assert_refused(outcome, ["one problem", "Did you mean seed?"], output)


def test_many_problems_are_cut_and_counted(light_cli: Cli, cli: Cli, output: Path) -> None:
    outcome = cli("data.caption_extension=.caption", f"output_dir={output}")
    assert outcome.code == 2
    assert "81 problems" in outcome.text
    assert "and 61 more" in outcome.text
    assert len(outcome.text.splitlines()) < 30


@pytest.fixture
def own_desk(desk: Path, world: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the desk and its base, whose modes a test may change."""
    root = tmp_path / "desk"
    for source in (desk / "conf", world / "base", world / "images", world / "held_out"):
        shutil.copytree(source, root / source.name)
    experiment = root / "conf" / "experiment" / "tiny.yaml"
    experiment.write_text(experiment.read_text().replace(str(world), str(root)))
    (root / "closed").mkdir(mode=0o500)
    yield root
    (root / "closed").chmod(0o700)


def test_unreadable_files_and_unwritable_folders_are_refused(cli: Cli, own_desk: Path) -> None:
    output = own_desk / "closed"
    closed = own_desk / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    closed.chmod(0o000)
    outcome = cli(
        "--config-dir",
        "conf",
        "experiment=tiny",
        f"output_dir={output}",
        folder=own_desk,
        obeys_modes=True,
    )
    assert outcome.code == 2, outcome.text
    assert f"{closed.relative_to(own_desk)} cannot be read (Permission denied)" in outcome.text
    assert f"output_dir: {output}" in outcome.text
    assert "cannot be written (Permission denied)" in outcome.text
    assert "set output_dir to another folder" in outcome.text
    assert "Traceback" not in outcome.text
    assert list(output.iterdir()) == []


def test_a_complete_cache_need_not_be_writable(cli: Cli, own_desk: Path) -> None:
    cache = own_desk / "latents"
    given = ["--config-dir", "conf", "experiment=tiny", f"data.latent_cache.directory={cache}"]
    cli(*given, folder=own_desk)
    folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o500)
    complete = cli(*given, folder=own_desk, obeys_modes=True)
    lacking = cli(*given, "data.buckets.enabled=false", folder=own_desk, obeys_modes=True)
    for path in folders:
        path.chmod(0o700)
    assert complete.code == 0, complete.text
    assert lacking.code == 2, lacking.text
    assert f"data.latent_cache.directory: {cache} cannot be written" in lacking.text
    assert "set data.latent_cache.directory to another folder" in lacking.text


def test_full_disk_is_refused_beforehand(cli: Cli, desk: Path, small_disk: Disk) -> None:
    small_disk.fill(leave=2**20)
    outcome = cli(
        "--config-dir", "conf", "experiment=tiny", f"output_dir={small_disk.path}", folder=desk
    )
    assert outcome.code == 2, outcome.text
    assert "MiB free, and this run needs about" in outcome.text
    assert "Traceback" not in outcome.text
    assert small_disk.names() == ["ballast"]


def test_disk_that_fills_up_stops_the_run_and_keeps_the_last_checkpoint(
    cli: Cli, desk: Path, small_disk: Disk
) -> None:
    command = [
        "--config-dir",
        "conf",
        "experiment=tiny",
        f"output_dir={small_disk.path}",
        f"data.latent_cache.directory={desk / 'cache-of-the-full-disk'}",
        "run_id=a",
        "trainer.max_steps=4000",
        "validation.every_n_steps=null",
        "callbacks.checkpoint.every_n_steps=2",
        "callbacks.checkpoint.keep_last=2",
        "logger=none",
    ]
    process = cli.start(*command, folder=desk)
    folder = small_disk.path / "smoke" / "a" / "checkpoints"
    process.wait_for((folder / "step-000002.ckpt").is_file)
    small_disk.fill(leave=2**16)
    outcome = process.wait()

    assert outcome.code == 2, outcome.text[-3000:]
    assert "The run stopped: one problem" in outcome.text
    assert "could not be written (No space left on device)" in outcome.text
    assert "resume=auto" in outcome.text
    assert "Traceback" not in outcome.text
    assert not list(folder.glob("*.part"))
    small_disk.empty()

    again = cli(*command, "resume=auto", "check_only=true", folder=desk)

    assert again.code == 0, again.text
    assert "continues from" in again.text


def test_weights_that_diverge_stop_the_run_with_one_sentence(
    cli: Cli, desk: Path, output: Path
) -> None:
    outcome = cli(
        "--config-dir",
        "conf",
        "experiment=tiny",
        f"output_dir={output}",
        "optimizer.lr=1e30",
        "scheduler.warmup_steps=0",
        folder=desk,
    )
    assert outcome.code == 2, outcome.text
    assert "The run stopped: one problem" in outcome.text
    assert "train/loss is nan" in outcome.text
    assert "lower optimizer.lr" in outcome.text
    assert not list(output.rglob("*.safetensors"))[16:]
