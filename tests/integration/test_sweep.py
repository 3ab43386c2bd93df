"""Multirun: a folder per job named by its settings, one latent cache, failures stay local."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

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
