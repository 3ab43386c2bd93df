"""Adapter files of a run: names, write and verify, card, how many are kept."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loralab.adapters.export import verify_file, write_adapter
from loralab.app.metadata import Facts, file_metadata, session_id
from loralab.app.model_card import write_card, written_by
from loralab.config.adapter_rules import WITHOUT_DIFFUSERS_NAMES
from loralab.config.choices import FilePrecision, Layout, NameCollision
from loralab.config.records import RunConfig
from loralab.data.account import Account
from loralab.data.thumbnail import data_url
from loralab.errors import AdapterError, Problem
from loralab.training.callbacks.preview import Preview

if TYPE_CHECKING:
    from loralab.app.preflight import Survey
    from loralab.training.module import LoRATrainingModule

DTYPES = {
    FilePrecision.fp32: torch.float32,
    FilePrecision.fp16: torch.float16,
    FilePrecision.bf16: torch.bfloat16,
}


def adapter_name(config: RunConfig, folder: Path) -> str:
    """Return the name of a run's adapter, without ending and suffix."""
    comment = re.sub(r"[^\w.-]+", "-", config.export.comment).strip("-.")
    name = config.export.name_template.format(
        name=config.name,
        run_id=folder.name,
        comment=comment,
        kind=config.adapter.kind.name,
        rank=config.adapter.rank,
    )
    return name.strip("-_. ")


def adapter_path(config: RunConfig, folder: Path, layout: Layout, *, ending: str = "") -> Path:
    """Return where a run's adapter lies; an ending such as `-step000100` names an earlier one."""
    name = adapter_name(config, folder) + ending
    return _file(config, folder / "adapters" / name, layout)


def written_layouts(config: RunConfig) -> list[Layout]:
    """Return the layouts that can hold the adapter's kind, of those asked for."""
    lacks_names = config.adapter.kind in WITHOUT_DIFFUSERS_NAMES
    return [x for x in config.export.layouts if not (lacks_names and x is Layout.diffusers)]


class AdapterWriter:
    """Writes the adapter in every layout asked for, and reads each file back."""

    def __init__(
        self,
        config: RunConfig,
        survey: Survey,
        module: LoRATrainingModule,
        folder: Path,
        account: Account,
    ) -> None:
        """Keep what names and metadata are made of."""
        self.config = config
        self.survey = survey
        self.module = module
        self.folder = folder
        self.account = account

    def write(self, ending: str, step: int) -> list[Path]:
        """Write and verify the files and their card; return the files' paths.

        Args:
            ending: End of the file name, such as `-step000100`; empty for the last file.
            step: Optimizer steps done.

        Raises:
            AdapterError: A file cannot be written or does not hold the live adapter.
        """
        with self.module.weights_for("export"):
            return self._write(ending, step)

    def _write(self, ending: str, step: int) -> list[Path]:
        layouts = written_layouts(self.config)
        if not layouts:
            return []
        path = self._free(self.folder / "adapters" / (self._name + ending))
        facts = Facts(
            self.config, self.survey, self.account.receipts, self.folder,
            self.module.objective.schedule.prediction_type, path.name, step, self._thumbnail(step),
        )  # fmt: skip
        card = (facts, self.survey.parts, self._figures())
        write_card(path, [], *card)  # the name is the run's own, also if it is killed meanwhile
        files = []
        for layout in layouts:
            file = _file(self.config, path, layout)
            write_adapter(
                file,
                self.module.adapted,
                layout=layout.name,
                dtype=DTYPES[self.config.export.precision],
                metadata=file_metadata(facts),
                prefixes=self.survey.family.export_prefix,
            )
            verify_file(file, self.module.adapted)
            files.append(file)
        write_card(path, files, *card)
        self._drop_oldest(ending)
        return files

    def write_checkpoint(self, path: Path, ending: str) -> list[Path]:
        """Write the files of a checkpoint of this run, and leave the live adapter as it is."""
        live = {key: tensor.clone() for key, tensor in self.module.state_dict().items()}
        content = torch.load(path, map_location="cpu", weights_only=True)
        try:
            self.module.load_state_dict(content.get("export_weights", content["state_dict"]))
            return self._write(ending, content["global_step"])
        finally:
            self.module.load_state_dict(live)

    @property
    def _name(self) -> str:
        return adapter_name(self.config, self.folder)

    def _figures(self) -> dict[str, float]:
        trainer = self.module._trainer  # the property of that name raises outside of training
        metrics = {} if trainer is None else trainer.callback_metrics
        return {name: float(value) for name, value in metrics.items()}

    def _thumbnail(self, step: int) -> str:
        """Return the preview of this step as text; empty without one, or when none is wanted."""
        side, trainer = self.config.export.modelspec.thumbnail, self.module._trainer
        if side is None or trainer is None:
            return ""
        previews = (c for c in trainer.callbacks if isinstance(c, Preview))  # type: ignore[attr-defined]
        pictures = (preview.picture_of(step) for preview in previews)
        return next((data_url(picture, side) for picture in pictures if picture is not None), "")

    def _free(self, path: Path) -> Path:
        """Return a name that no file of another run has; a resumed run replaces its own.

        Raises:
            AdapterError: The name is taken and versions are not wanted.
        """
        policy, number = self.config.export.on_name_collision, 2
        candidate = path
        while policy is not NameCollision.overwrite and self._is_anothers(candidate):
            if policy is NameCollision.error:
                text = (
                    f"export.on_name_collision is error, and {candidate} is there already; move "
                    "it, or use version."
                )
                raise AdapterError(Problem("export.on_name_collision", text))
            candidate = path.with_name(f"{path.name}-v{number}")
            number += 1
        return candidate

    def _is_anothers(self, path: Path) -> bool:
        taken = any(_file(self.config, path, layout).exists() for layout in Layout)
        return taken and written_by(path) != session_id(self.folder)

    def keep_only(self, word: str, numbers: Collection[int]) -> None:
        """Delete the files whose ending is this word and another number."""
        for number, files in self._numbered(word).items():
            if number not in numbers:
                for file in files:
                    file.unlink()

    def _drop_oldest(self, ending: str) -> None:
        """Delete the oldest files of steps, or of epochs, beyond the number to keep."""
        keep = self.config.export.keep_last
        kind = re.match(r"(-step|-epoch)\d+$", ending)
        if keep is not None and kind is not None:
            self.keep_only(kind[1], sorted(self._numbered(kind[1]))[-keep:])

    def _numbered(self, word: str) -> dict[int, list[Path]]:
        """Return the run's files, and their cards, by the number after a word."""
        pattern = re.compile(rf"{re.escape(self._name + word)}(\d+)(\.|$)")
        numbered: dict[int, list[Path]] = {}
        folder = self.folder / "adapters"
        for file in folder.iterdir() if folder.is_dir() else ():
            if match := pattern.match(file.name):
                numbered.setdefault(int(match[1]), []).append(file)
        return numbered


def _file(config: RunConfig, path: Path, layout: Layout) -> Path:
    suffix = "" if layout is Layout.kohya else f".{layout.name}"
    return path.with_name(f"{path.name}{suffix}.{config.export.container.name}")
