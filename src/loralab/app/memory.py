"""Memory that runs out: which settings take less, in the order to try them, and how to go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from loralab.app.folders import RunFolder
from loralab.app.lifecycle import how_to_continue
from loralab.app.logs import LOG_FILE
from loralab.app.models import AUTOCAST
from loralab.config.choices import WeightDtype
from loralab.config.records import RunConfig
from loralab.errors import Problem, UserError, is_out_of_memory

_log = logging.getLogger("loralab")


@contextmanager
def memory_told(config: RunConfig, folder: RunFolder) -> Iterator[None]:
    """Turn want of memory into one sentence; the traceback stays in the run's log.

    Raises:
        UserError: There was not enough memory in the block.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _log.exception("out of memory")
        # What the failed step holds is let go, for the next job of a sweep.
        raise UserError(_problem(config, folder, error)) from error.with_traceback(None)


def _problem(config: RunConfig, folder: RunFolder, error: Exception) -> Problem:
    reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
    text = (
        f"data.batch_size is {config.data.batch_size}, and memory ran out ({reason}); start a new "
        f"run with less, in this order: {', '.join(_remedies(config))}; or free memory and go on "
        f"with {how_to_continue(config, folder)}. The traceback is in {folder.path / LOG_FILE}."
    )
    return Problem("data.batch_size", text)


def _remedies(config: RunConfig) -> Iterator[str]:
    """Yield what is not done yet, the least harm first."""
    size, rounds = config.data.batch_size, config.trainer.get("accumulate_grad_batches", 1)
    if size > 1:
        yield (
            f"data.batch_size below {size} with trainer.accumulate_grad_batches above {rounds}, "
            "the same images a step"
        )
    if not config.model.gradient_checkpointing:
        yield "model.gradient_checkpointing=true"
    stored = config.model.weight_dtype
    if config.trainer.get("precision") not in AUTOCAST and stored is not WeightDtype.fp16:
        yield "trainer.precision=bf16-mixed"
    if stored is WeightDtype.fp32:
        yield "model.weight_dtype=bf16"
    yield f"data.resolution below {config.data.resolution}"
