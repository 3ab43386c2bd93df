"""One file with a whole model in the layout of LDM or SGM, as interfaces exchange them.

Only names and shapes are read here. A pickle (`.ckpt`) is opened with torch's `weights_only`, which
runs no code of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from loralab.errors import Problem
from loralab.models.checkpoint_shapes import (
    Shapes,
    below,
    clip_config,
    open_clip_config,
    unet_config,
    vae_config,
)
from loralab.models.family import FamilySpec, TextLayout
from loralab.models.folder import ModelFolder, header_complaint
from loralab.models.source import KEY, PartSource

SHIPPED = Path(__file__).parent / "shipped"
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
SGM_CLIP, SGM_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
REFINER = "conditioner.embedders.0.model."
# What key starts say of the family, the surest first.
MARKS = {
    SGM_OPEN_CLIP: "sdxl",
    OPEN_CLIP: "sd2",
    CLIP: "sd1",
    REFINER: "",
    UNET + "input_blocks.": "",
}
OTHER_KINDS = (  # (a piece of a key, what a file with it is)
    ("lora_", "an adapter; give the model that it belongs to"),
    ("double_blocks.", "a model of the Flux kind"),
    ("joint_blocks.", "a Stable Diffusion 3 model"),
    ("control_model.", "a ControlNet"),
    ("down_blocks.", "a single part in diffusers' layout; give the folder of the whole model"),
)


class CheckpointFile(PartSource):
    """A whole model in one file; also the file of a VAE alone."""

    def __init__(
        self,
        path: str | Path,
        spec: FamilySpec,
        *,
        config_path: str | Path | None = None,
        vae_config: Mapping[str, Any] | None = None,
        key: str = KEY,
        problems: list[Problem] | None = None,
    ) -> None:
        super().__init__(path, key=key, problems=problems)
        self.spec = spec
        self.vae_config = vae_config  # that of the base, when this is another VAE for it
        self.given = (
            None
            if config_path is None
            else ModelFolder(config_path, key="model.config_path", problems=self.problems)
        )

    @property
    def is_safetensors(self) -> bool:
        return self.path.suffix == ".safetensors"

    @cached_property
    def shapes(self) -> Shapes:
        """Return the shape of every tensor by name; empty, with a problem, if unreadable."""
        try:
            return self._header() if self.is_safetensors else self._pickled()
        except OSError as error:
            self.report(f"{self.path} cannot be read ({error.strerror}); mend its permissions.")
            return {}

    def family(self) -> str | None:
        found = self._family() if self.shapes else None
        self.raise_problems()
        return found

    def _family(self) -> str | None:
        starts = {name[: len(prefix)] for name in self.shapes for prefix in MARKS}
        if UNET + "input_blocks." not in starts:
            everything = " ".join(self.shapes)
            kinds = (what for piece, what in OTHER_KINDS if piece in everything)
            self.report(
                f"{self.path} is {next(kinds, 'no Stable Diffusion checkpoint')}; {self.key} must "
                "be a Stable Diffusion 1, 2 or XL model."
            )
        elif REFINER in starts:
            self.report(f"{self.path} is an SDXL refiner; give the base model.")
        elif not starts & MARKS.keys() - {UNET + "input_blocks."}:
            self.report(
                f"{self.path} has no text encoder; give a checkpoint with one, or a folder in "
                "diffusers' layout."
            )
        return next((MARKS[prefix] for prefix in MARKS if prefix in starts and MARKS[prefix]), None)

    def config(self, part: str) -> dict[str, Any]:
        configs = self.given or ModelFolder(SHIPPED / self.spec.name)
        if part == "scheduler":  # what the file itself says is nearer to its weights
            return configs.config(part) | self._scheduler_marks()
        if self.given is not None:
            return self.given.config(part)
        base = dict(self.vae_config or configs.config(part))
        if not self.shapes or not self.has(part):
            return base
        try:
            return self._config(part, base)
        except (KeyError, IndexError, ValueError) as error:
            self.report(
                f"{self.path} lacks weights that a {self.spec.title} {part} has, for example "
                f"{self.prefix(part)}{str(error).strip(chr(39))}; download or convert it again."
            )
            return {}

    def config_file(self, part: str) -> Path:
        return self.path if self.given is None else self.given.config_file(part)

    def weight_files(self, part: str) -> Sequence[Path]:
        return (self.path,)

    def check_weights(self, part: str) -> None:
        if self.shapes and not self.has(part):
            advice = (
                "name one with model.vae_path" if part == "vae" else "give a complete checkpoint"
            )
            if self.key != "model.path":
                advice = f"{self.key} must be a folder or file with one"
            self.report(f"{self.path} has no {part}; {advice}.")

    def check_tokenizer(self, layout: TextLayout, vocab_size: int | None) -> None:
        if self.given is not None:
            self.given.check_tokenizer(layout, vocab_size)
        elif vocab_size not in (None, 49408):
            self.report(
                f"{self.path} has a text encoder of {vocab_size} tokens, but CLIP's vocabulary has "
                "49408; name a folder with its configs and tokenizer with model.config_path."
            )

    def prefix(self, part: str) -> str:
        """Return what the names of a part's tensors start with."""
        if part == "vae":  # a file with a VAE alone may leave it out
            return VAE if any(name.startswith(VAE) for name in self.shapes) else ""
        if part == "unet":
            return UNET
        if not self.spec.reads_sizes:
            return OPEN_CLIP if self._layout(part).open_clip else CLIP
        return SGM_OPEN_CLIP if self._layout(part).open_clip else SGM_CLIP

    def has(self, part: str) -> bool:
        """Tell whether the file has a part; the one-file layouts mark them by their first layer."""
        first = {"vae": "encoder.conv_in.weight", "unet": "input_blocks.0.0.weight"}.get(part, "")
        return any(name.startswith(self.prefix(part) + first) for name in self.shapes)

    def _config(self, part: str, base: dict[str, Any]) -> dict[str, Any]:
        shapes = below(self.shapes, self.prefix(part))
        if part == "unet":
            return unet_config(shapes, base)
        if part == "vae":
            return vae_config(shapes, base)
        if self._layout(part).open_clip:
            return open_clip_config(shapes, base, shortened=self.spec.name == "sd2")
        named = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
        return clip_config(named, base)

    def _scheduler_marks(self) -> dict[str, Any]:
        """Return what empty tensors say that trainers of v-prediction models leave in a file."""
        marks: dict[str, Any] = {}
        if "v_pred" in self.shapes:
            marks["prediction_type"] = "v_prediction"
        if "ztsnr" in self.shapes:
            marks |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return marks

    def _layout(self, part: str) -> TextLayout:
        return next(layout for layout in self.spec.text if layout.part == part)

    def _header(self) -> Shapes:
        if complaint := header_complaint(self.path):
            self.report(f"{self.path} {complaint}; download it again.")
            return {}
        with self.path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        return {
            name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"
        }

    def _pickled(self) -> Shapes:
        from loralab.models.pickles import read_pickle

        tensors = read_pickle(self.path, device="meta", report=self.report)
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
