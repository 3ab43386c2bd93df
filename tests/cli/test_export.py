"""`loralab export` and `loralab sample` on a real run."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from loralab.cli.main import app
from loralab.errors import UserError
from tests.effects.runs import Tiny, TinyRun
from tests.tiny import make_images, make_tiny_sd1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    root: Path = tmp_path_factory.mktemp("export")
    make_images(root / "images", count=4)
    tiny = Tiny(root, base=make_tiny_sd1(root / "base"), images=root / "images")
    return tiny.run("adapter.alpha=3", "adapter.kind=dora", "callbacks.checkpoint.every_n_steps=2")


def loralab(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as content:
        return dict(content.metadata())


def test_a_run_gives_the_file_that_training_wrote(trained: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "again.safetensors"
    assert loralab("export", trained.folder, out, "--json")["steps"] == 3
    written = load_file(out)
    assert written.keys() == trained.adapter.keys()
    assert all(torch.equal(written[key], trained.adapter[key]) for key in written)
    mine, theirs = metadata(out), trained.metadata
    same = ("sshs_model_hash", "ss_network_dim", "ss_network_alpha", "ss_session_id", "ss_steps",
            "loralab.data_digest", "loralab.order_receipts", "loralab.config")  # fmt: skip
    assert {key: mine[key] for key in same} == {key: theirs[key] for key in same}


def test_the_file_has_a_card_beside_it(trained: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "again.v2.safetensors"
    loralab("export", trained.folder, out, "--json")
    card = json.loads((tmp_path / "again.v2.json").read_text(encoding="utf-8"))
    theirs = json.loads((trained.folder / "adapters" / "tiny.json").read_text(encoding="utf-8"))
    assert card["files"] == {out.name: hashlib.sha256(out.read_bytes()).hexdigest()}
    told = theirs.keys() - {"title", "files", "figures"}
    assert {key: card[key] for key in told} == {key: theirs[key] for key in told}
    assert card["figures"] == trained.metrics
    assert "rank 2, alpha 3" in (tmp_path / "again.v2.md").read_text(encoding="utf-8")


def test_a_card_that_is_there_is_kept(trained: TinyRun, tmp_path: Path) -> None:
    out, notes = tmp_path / "again.safetensors", tmp_path / "again.md"
    notes.write_text("my notes")
    with pytest.raises(UserError, match=r"again\.md is there already; choose another name"):
        loralab("export", trained.folder, out)
    assert notes.read_text() == "my notes"
    assert not out.exists()
    loralab("export", trained.folder, out, "--overwrite", "--json")
    assert notes.read_text().startswith("# again")


def test_a_run_that_averages_gives_its_average(tmp_path: Path) -> None:
    make_images(tmp_path / "images", count=4)
    tiny = Tiny(tmp_path, base=make_tiny_sd1(tmp_path / "base"), images=tmp_path / "images")
    averaged = tiny.run("ema=default", "ema.decay=0.5")
    out = tmp_path / "again.safetensors"
    loralab("export", averaged.folder, out, "--json")
    written = load_file(out)
    assert all(torch.equal(written[key], averaged.adapter[key]) for key in written)
    live = averaged.checkpoint(3)["state_dict"]
    assert not all(
        torch.equal(live[key], tensor)
        for key, tensor in averaged.checkpoint(3)["export_weights"].items()
    )


def test_a_checkpoint_is_exported_without_the_images(trained: TinyRun, tmp_path: Path) -> None:
    images = Path(trained.config.data.image_dir)
    images.rename(images.with_name("away"))
    try:
        out = tmp_path / "early.safetensors"
        checkpoint = trained.folder / "checkpoints" / "step-000002.ckpt"
        found = loralab(
            "export", checkpoint, out, "--to", "diffusers", "--precision", "16", "--json"
        )
    finally:
        images.with_name("away").rename(images)
    assert found["steps"] == 2
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.float16}
    state = trained.checkpoint(2)["state_dict"]
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A"
    torch.testing.assert_close(
        load_file(out)[f"{name}.weight"], state[f"{name}.weight"].half(), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("nothing there", "does not exist; give a run folder"),
        ("no checkpoint", "holds no checkpoint; train the run first"),
        ("broken checkpoint", "is damaged or not a checkpoint of loralab"),
        ("lonely checkpoint", "has no config.yaml"),
        ("taken", "is there already"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    trained: TinyRun, tmp_path: Path, damage: str, said: str
) -> None:
    out, run = tmp_path / "out.safetensors", tmp_path / "run"
    if damage != "nothing there":
        shutil.copytree(trained.folder, run)
    if damage == "no checkpoint":
        shutil.rmtree(run / "checkpoints")
    if damage == "broken checkpoint":
        (run / "checkpoints" / "step-000003.ckpt").write_bytes(b"rubbish")
    if damage == "lonely checkpoint":
        (run / "config.yaml").unlink()
    if damage == "taken":
        out.touch()
    with pytest.raises(UserError, match=said) as caught:
        loralab("export", run, out)
    assert len(caught.value.problems) == 1
    assert out.exists() == (damage == "taken")
