"""What a CLIP model says of the previews: do they follow their prompts, and what do they resemble?

Hessel et al. 2021, "CLIPScore": the cosine of a picture's and its prompt's embedding. Nothing is
drawn here and no weight is touched; the pictures are the previews'.
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as L
import torch
from torch import Tensor

from loralab.models.clip import ClipJudge
from loralab.training.callbacks.preview import Preview
from loralab.training.callbacks.steps import StepCallback

FIGURES = ("result/clip_prompt", "result/clip_image", "result/clip_image_max")


class ResultMetrics(StepCallback):
    """Judges the pictures of every preview, and those of the base, which are the same each time.

    Its place is after the previews'. The figures of the last preview are among the run's metrics.
    """

    def __init__(self, preview: Preview, clip: ClipJudge, images: Sequence[Tensor]) -> None:
        """Keep what is compared.

        Args:
            preview: Draws the pictures.
            clip: Compares them.
            images: (3,H,W) in [0,1], of any sizes: what the pictures are to resemble.
        """
        self.preview, self.clip, self.images = preview, clip, images
        self._texts: Tensor | None = None
        self._places = torch.empty(0)
        self._base: dict[str, float] = {}
        self._judged_step = -1

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Judge the base, and the adapter as it starts."""
        super().on_train_start(trainer, module)
        if self.preview.base is None:
            return
        self.clip.device = module.device
        self._texts = self.clip.embed_texts(self.preview.options.prompts)
        self._places = self.clip.embed_pictures(self.images)
        self._base = self._judge(self.preview.base)
        self._judge_new(trainer)

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Judge a new preview."""
        self._judge_new(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Judge the last preview."""
        self._judge_new(trainer)

    def _judge_new(self, trainer: L.Trainer) -> None:
        pictures, step = self.preview.pictures, self.preview.drawn_step
        if self._texts is None or pictures is None or step == self._judged_step:
            return
        self._judged_step = step
        figures = self._judge(pictures)
        figures |= {f"{name}_base": value for name, value in self._base.items()}
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in figures.items()})
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)

    def _judge(self, pictures: Tensor) -> dict[str, float]:
        assert self._texts is not None
        drawn = self.clip.embed_pictures(list(pictures))  # (B, D)
        cosines = drawn @ self._places.T  # (B, images)
        means = (
            (drawn * self._texts).sum(dim=1).mean(),
            cosines.mean(),
            cosines.amax(dim=1).mean(),  # to the nearest image of each picture
        )
        return dict(zip(FIGURES, (float(mean) for mean in means), strict=True))
