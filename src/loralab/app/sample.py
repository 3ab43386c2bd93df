"""Pictures of a run or an adapter file beside those of its base, drawn by our own sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loralab.adapters.export import parse_adapter
from loralab.adapters.merged import merged
from loralab.adapters.reader import PEFT_WEIGHTS, open_adapter
from loralab.app.models import DTYPES, fixed_sizes, model_place
from loralab.app.objective import build_schedule, sampling_config
from loralab.app.prompt_lines import Shot
from loralab.app.stored_run import adapter_files, config_of, stored_config
from loralab.app.tools import family_of
from loralab.config.records import RunConfig
from loralab.data.contact_sheet import save_sheet
from loralab.errors import ConfigError, Problem, UserError
from loralab.files import storage_problem
from loralab.models.family import ModelFacts, ModelFamily
from loralab.models.registry import load_family
from loralab.models.sampling import sample_images

CELL_LIMIT = 768  # px of a picture in the grid
TOKENS_A_ROW = 75


@dataclass(frozen=True)
class Source:
    """What is drawn with.

    Attributes:
        adapter: The file.
        family: Name of the base's family.
        config: Of the run that made it; None when the file does not tell.
    """

    adapter: Path
    family: str
    config: RunConfig | None


def find_source(path: Path, *, has_base: bool) -> Source:
    """Return the adapter of a run folder or file, and what is known of its training.

    Raises:
        UserError: It is neither, or the file names no base and none is given.
    """
    if path.is_dir() and not (path / PEFT_WEIGHTS).is_file():
        config = stored_config(path)
        files = adapter_files(config, path)
        if not files:
            text = (
                f"{path} has no adapter file yet; finish the run, or write one with "
                f"`loralab export {path} FILE` and give that."
            )
            raise UserError(Problem("RUN", text))
        return Source(files[0], config.model.family.name, config)
    with open_adapter(path) as file:
        family, recipe = family_of(file), file.metadata.get("loralab.config")
    if recipe is None and not has_base:
        text = f"{path} does not say which base it was trained on; give --base."
        raise UserError(Problem("--base", text))
    found = None if recipe is None else config_of(recipe, source=path)
    return Source(path, family if found is None else found.model.family.name, found)


def draw_grid(
    source: Source, shots: Sequence[Shot], out: Path, *, base: str | None, with_base: bool
) -> None:
    """Draw every picture, the base's beside it if asked, and save the grid.

    Raises:
        UserError: The base or the adapter cannot be read, or a size does not fit the base.
    """
    family, schedule = _load(source, base)
    _check_sizes(shots, family.facts)
    adapter = parse_adapter(source.adapter, family.parts)
    codec = family.load_codec()

    def draw(shot: Shot, strength: float) -> Tensor:
        with merged(adapter, family.parts, strength=strength) if strength else nullcontext():
            pictures = sample_images(
                denoiser=family.denoiser,
                conditioner=family.conditioner,
                codec=codec,
                schedule_config=schedule,
                prompts=[shot.prompt],
                negative_prompt=shot.negative,
                num_steps=shot.steps,
                guidance_scale=shot.guidance,
                seed=shot.seed,
                height=shot.height,
                width=shot.width,
                latent_channels=family.facts.latent_channels,
                vae_factor=family.facts.vae_factor,
            )
        return pictures[0]

    columns = {"base": [draw(shot, 0.0) for shot in shots]} if with_base else {}
    columns[source.adapter.stem] = [draw(shot, shot.strength) for shot in shots]
    cell = min(CELL_LIMIT, max(max(shot.width, shot.height) for shot in shots))
    try:
        save_sheet(out, columns, labels=[shot.describe() for shot in shots], cell=cell)
    except OSError as error:
        raise UserError(storage_problem(out, error, key="--out")) from error


def default_side(source: Source) -> int:
    """Return the side of a square picture, in px."""
    if source.config is not None:
        return source.config.model.native_resolution
    return 1024 if source.family == "sdxl" else 512


def _load(source: Source, base: str | None) -> tuple[ModelFamily, Mapping[str, Any]]:
    """Return the base, as the run had it, and the config of its sampler's schedule."""
    config = source.config
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if config is None:
        family = load_family(source.family, str(base), device=device)
        return family, family.schedule_config
    family = load_family(
        source.family,
        model_place(config) if base is None else base,
        weight_dtype=DTYPES[config.model.weight_dtype],
        vae_dtype=DTYPES[config.model.vae_dtype],
        device=device,
        clip_skip=config.model.clip_skip,
        text_rows=max(1, config.model.max_tokens // TOKENS_A_ROW),
        prompt_weights=config.model.prompt_weights,
        fixed_sizes=fixed_sizes(config),
    )
    schedule = build_schedule(config, family.schedule_config)
    return family, sampling_config(config, schedule, family.schedule_config)


def _check_sizes(shots: Sequence[Shot], facts: ModelFacts) -> None:
    step = facts.bucket_step
    problems = [
        Problem(
            "--width",
            f"the picture of {shot.prompt!r} is {shot.width} x {shot.height} px; sides must be "
            f"multiples of {step} for this base.",
        )
        for shot in shots
        if shot.width % step or shot.height % step
    ]
    if problems:
        raise ConfigError(*problems)
