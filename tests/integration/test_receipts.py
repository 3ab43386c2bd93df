"""Receipts of the order: in the log, the account, the checkpoint and the exported file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.integration.artifacts import last_checkpoint
from tests.integration.cli import Cli

RUN = ["trainer.accelerator=cpu", "trainer.max_steps=6", "data.flip_probability=0.5",
       "data.captions.caption_dropout=0.2"]  # fmt: skip


def account(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    return content


def receipts(folder: Path) -> list[dict[str, Any]]:
    """Return the receipts of a run, the same in all places that hold them."""
    found: list[dict[str, Any]] = account(folder)["order_receipts"]
    (file,) = folder.glob("adapters/smoke.safetensors")
    with safe_open(file, framework="pt") as content:
        assert json.loads(content.metadata()["loralab.order_receipts"]) == found
    assert last_checkpoint(folder)["account"]["receipts"] == found
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert all(f"epoch {r['epoch']}: order receipt {r['sha256']}" in log for r in found)
    return found


@pytest.mark.slow
def test_receipts_are_alike_for_workers_caches_ranks_and_a_resumed_run(
    cli: Cli, tiny: list[str], output: Path
) -> None:
    def run(name: str, *own: str) -> list[dict[str, Any]]:
        outcome = cli(*tiny, *RUN, f"run_id={name}", *own)
        assert outcome.code == 0, outcome.text
        return receipts(output / "smoke" / name)

    expected = run("a", "trainer.accumulate_grad_batches=2")
    # 12 images in buckets of 5, 3 and 4 make 7 micro-batches an epoch, 4 windows of 2.
    assert [(r["epoch"], r["micro_batches"]) for r in expected] == [(0, 7), (1, 4)]
    assert run("b", "trainer.accumulate_grad_batches=2", "data.num_workers=2") == expected
    assert run("c", "trainer.accumulate_grad_batches=2", "data.latent_cache.enabled=false") == (
        expected
    )
    assert run("d", "trainer.devices=2", "+trainer.strategy=ddp") == expected
    one, two = (account(output / "smoke" / name)["figures"] for name in "ad")
    assert one == two
    assert run("e", "trainer.accumulate_grad_batches=2", "seed=1") != expected

    whole = output / "smoke" / "a"
    (whole / "checkpoints" / "step-000006.ckpt").unlink()
    (whole / "run.json").write_text(
        (whole / "run.json").read_text().replace('"finished"', '"running"')
    )
    assert run("a", "trainer.accumulate_grad_batches=2", "resume=auto") == expected
    assert account(whole)["figures"] == one
