"""Adapter files of a run: names, metadata, write and verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loralab import __version__
from loralab.adapters.export import verify_file, write_adapter
from loralab.config.choices import FilePrecision, Layout
from loralab.config.parse import to_yaml
from loralab.config.records import RunConfig

if TYPE_CHECKING:
    from loralab.app.preflight import Survey
    from loralab.training.module import LoRATrainingModule

DTYPES = {
    FilePrecision.fp32: torch.float32,
    FilePrecision.fp16: torch.float16,
    FilePrecision.bf16: torch.bfloat16,
}


class AdapterWriter:
    """Writes the live adapter in every layout asked for, and reads each file back."""

    def __init__(
        self, config: RunConfig, survey: Survey, module: LoRATrainingModule, folder: Path
    ) -> None:
        """Keep what names and metadata are made of."""
        self.config = config
        self.survey = survey
        self.module = module
        self.folder = folder

    def write(self, ending: str, step: int) -> list[Path]:
        """Write and verify the files; return their paths.

        Args:
            ending: End of the file name, such as `-step000100`; empty for the last file.
            step: Optimizer steps done.

        Raises:
            AdapterError: A file cannot be written or does not hold the live adapter.
        """
        name = self.config.export.name_template.format(
            name=self.config.name, run_id=self.folder.name
        )
        paths = []
        for layout in self.config.export.layouts:
            suffix = "" if layout is Layout.kohya else f".{layout.name}"
            path = self.folder / "adapters" / f"{name}{ending}{suffix}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_adapter(
                path,
                self.module.adapted,
                layout=layout.name,
                dtype=DTYPES[self.config.export.precision],
                metadata=self._metadata(name + ending, step),
                prefixes=self.survey.family.export_prefix,
            )
            verify_file(path, self.module.adapted, prefixes=self.survey.family.export_prefix)
            paths.append(path)
        return paths

    def _metadata(self, title: str, step: int) -> dict[str, str]:
        """Return what other tools read (`ss_*`, `modelspec.*`) and the recipe of the file."""
        config, adapter = self.config, self.config.adapter
        prediction = self.module.objective.schedule.prediction_type
        is_v = prediction == "v_prediction"
        return {
            "ss_output_name": title,
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(adapter.rank),
            "ss_network_alpha": str(adapter.alpha),
            "ss_base_model_version": "sd_v1_v" if is_v else "sd_v1",
            "ss_v2": "False",
            "ss_clip_skip": str(config.model.clip_skip if config.model.clip_skip > 1 else None),
            "ss_seed": str(config.seed),
            "ss_steps": str(step),
            "ss_num_train_images": str(len(self.survey.items)),
            "ss_resolution": str((config.data.resolution, config.data.resolution)),
            "ss_sd_model_name": Path(config.model.path).name,
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "modelspec.implementation": "diffusers",
            "modelspec.title": title,
            "modelspec.resolution": f"{config.data.resolution}x{config.data.resolution}",
            "modelspec.prediction_type": "v" if is_v else "epsilon",
            "loralab.version": __version__,
            "loralab.config": to_yaml(config),
        }
