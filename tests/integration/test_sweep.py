"""Multirun: a folder per job named by its settings, one latent cache, failures stay local."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from typer.testing import CliRunner

from loralab.app.folders import choose_folder
from loralab.cli.main import app
from loralab.config.parse import parse_config
from tests.config.conftest import composed
from tests.integration.cli import Cli


def jobs(output: Path) -> dict[str, Path]:
    """Return the finished jobs of the only sweep, by folder name."""
    (sweep,) = (output / "smoke" / "sweeps").iterdir()
    return {path.parent.name: path.parent for path in sweep.rglob("run.json")}


def hparams(folder: Path) -> dict[str, float | str | bool]:
    """Return the settings that TensorBoard's HPARAMS tab shows for a run."""
    events = EventAccumulator(str(folder)).Reload()
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    values = data.session_start_info.hparams
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in values.items()}


def test_grid_of_four_makes_four_named_runs_that_share_the_latent_cache(
    cli: Cli, tiny: list[str], output: Path
) -> None:
    outcome = cli("-m", *tiny, "optimizer.lr=1e-4,1e-3", "adapter.rank=2,4")

    assert outcome.code == 0, outcome.text
    folders = jobs(output)
    assert sorted(folders) == [
        "adapter.rank=2,optimizer.lr=0.0001",
        "adapter.rank=2,optimizer.lr=0.001",
        "adapter.rank=4,optimizer.lr=0.0001",
        "adapter.rank=4,optimizer.lr=0.001",
    ]
    for name, folder in folders.items():
        settings = dict(pair.split("=") for pair in name.split(","))
        shown = hparams(folder)
        assert shown["optimizer.lr"] == float(settings["optimizer.lr"])
        assert shown["adapter.rank"] == float(settings["adapter.rank"])
        events = EventAccumulator(str(folder)).Reload()
        state = json.loads((folder / "run.json").read_text())
        last = events.Scalars("val/loss")[-1]
        assert (last.step, state["state"]) == (4, "finished")
        assert abs(last.value - state["metrics"]["val/loss"]) < 1e-6
        assert len(list((folder / "adapters").glob("*.safetensors"))) == 2
    compared = CliRunner().invoke(app, ["compare", str(folder.parent), "--json"])
    rows = {row["run"]: row for row in json.loads(compared.output)}
    assert rows.keys() == {str(folder) for folder in folders.values()}
    for folder in folders.values():  # the losses by image are those of the figure
        metrics = json.loads((folder / "run.json").read_text())["metrics"]
        row = rows[str(folder)]
        assert row["loss"] == pytest.approx(metrics["val/loss"], rel=1e-9)
        assert row["stderr"] == pytest.approx(metrics["val/loss_stderr"], rel=1e-9)
    assert outcome.text.count("latent cache: complete") == 3
    assert len(list((output / "latent-cache").rglob("*.safetensors"))) == 16


def test_failing_job_does_not_stop_the_others(cli: Cli, tiny: list[str], output: Path) -> None:
    outcome = cli("-m", *tiny, "adapter.unet.targets=[to_q],[to_z],[to_v]", "logger=none")

    assert outcome.code == 2, outcome.text
    finished = [folder for folder in jobs(output).values() if (folder / "adapters").is_dir()]
    assert len(finished) == 2
    assert "1 of 3 jobs failed" in outcome.text
    assert "adapter.unet.targets holds 'to_z'" in outcome.text
    assert "Traceback" not in outcome.text


def test_misspelt_key_stops_the_sweep_before_its_first_job(
    cli: Cli, tiny: list[str], output: Path
) -> None:
    outcome = cli("-m", *tiny, "adapter.rnk=2,4")

    assert outcome.code == 2
    assert "Did you mean adapter.rank?" in outcome.text
    assert not list(output.rglob("run.json"))


def test_sweep_refuses_more_than_one_device(cli: Cli, tiny: list[str], output: Path) -> None:
    outcome = cli("-m", *tiny, "optimizer.lr=1e-4,1e-3", "trainer.devices=2")

    assert outcome.code == 2
    assert "trainer.devices is 2; a job of a sweep uses one device" in outcome.text
    assert not list(output.rglob("run.json"))


def test_equal_trials_of_a_search_have_folders_of_their_own(tmp_path: Path) -> None:
    config = parse_config(composed("~experiment", "model.path=a", "data.image_dir=b"))
    place = tmp_path / "adapter.rank=4"
    place.mkdir()  # Hydra makes it
    assert choose_folder(config, sweep_folder=place).path == place
    (place / "config.yaml").touch()
    assert choose_folder(config, sweep_folder=place).path == tmp_path / "adapter.rank=4-2"


def test_search_leaves_failed_jobs_out_and_lists_them(
    cli: Cli, tiny: list[str], output: Path
) -> None:
    free = [text for text in tiny if not text.startswith(("optimizer.lr", "adapter.rank"))]
    outcome = cli(
        *free, "hparams_search=optuna_lr_rank", "hydra.sweeper.n_trials=4", "trainer.max_steps=2",
        "scheduler.warmup_steps=0", "optimizer.lr=choice(1e-3)", "adapter.rank=choice(2,0)",
    )  # fmt: skip
    assert outcome.code == 2, outcome.text
    assert "adapter.rank is 0; it must be at least 1" in outcome.text
    assert "Traceback" not in outcome.text
    (folder,) = jobs(output).values()  # by the sampler's seed
    assert "3 of 4 jobs failed" in outcome.text
    assert outcome.text.count("\n  - adapter.rank=0,optimizer.lr=0.001") == 3
    best = (folder.parent / "optimization_results.yaml").read_text()
    assert "adapter.rank: 2" in best


@pytest.mark.slow
def test_jobs_of_other_processes_are_listed_when_they_fail(
    cli: Cli, tiny: list[str], output: Path
) -> None:
    outcome = cli(
        "-m", *tiny, "adapter.unet.targets=[to_q],[to_z]", "trainer.max_steps=2",
        "scheduler.warmup_steps=0", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    )  # fmt: skip
    assert outcome.code == 2, outcome.text
    assert "1 of 2 jobs failed" in outcome.text
    assert "adapter.unet.targets holds 'to_z'" in outcome.text
    assert len(jobs(output)) == 1


def test_ctrl_c_ends_the_sweep_and_says_how_to_continue_the_job(
    cli: Cli, tiny: list[str], output: Path
) -> None:
    process = cli.start("-m", *tiny, "optimizer.lr=1e-4,1e-3", "trainer.max_steps=400")
    process.wait_for(lambda: any(output.rglob("step-000002.ckpt")))
    process.send(signal.SIGINT)
    outcome = process.wait()
    assert outcome.code == 130, outcome.text
    ((name, folder),) = jobs(output).items()
    assert name == "optimizer.lr=0.0001"
    assert f"python train.py 'resume=\"{folder}\"'" in outcome.text
