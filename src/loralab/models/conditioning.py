"""Captions and sizes to what the UNet is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loralab.models.text_encoder import ClipEncoder


@dataclass
class Conditioning:
    """What the denoiser reads besides latents and timesteps.

    Attributes:
        hidden_states: (B,L,D).
        pooled: (B,P) for families that need it.
        time_ids: (B,6) for families that need it: height and width of the file, top and left of
            the cut, height and width of the picture.
    """

    hidden_states: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Return several batches as one."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        time_ids = [part.time_ids for part in parts if part.time_ids is not None]
        return Conditioning(
            torch.cat([part.hidden_states for part in parts]),
            torch.cat(pooled) if pooled else None,
            torch.cat(time_ids) if time_ids else None,
        )


class ClipConditioner(nn.Module):
    """Encode captions with one or two CLIP text encoders, their states side by side.

    Args:
        encoders: In the order in which the UNet expects their features.
        reads_sizes: Give the UNet the sizes, as SDXL wants them.
        fixed_sizes: (6,) sizes given in place of every picture's own.
    """

    def __init__(
        self,
        encoders: Sequence[ClipEncoder],
        *,
        reads_sizes: bool = False,
        fixed_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.encoders: Sequence[ClipEncoder] = nn.ModuleList(encoders)  # type: ignore[assignment]
        self.reads_sizes = reads_sizes
        self.fixed_sizes = None if fixed_sizes is None else torch.tensor(fixed_sizes)

    def encode(
        self,
        captions: Sequence[str],
        *,
        sizes: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> Conditioning:
        """Return the conditioning of captions; "" gives the unconditional one.

        Args:
            sizes: (B,6) original height and width, top and left of the cut, height and width;
                needed where the family reads them.
            input_ids: Recorded tokens in place of the captions: (B,L), or (B,E,N,R) where there
                are several encoders or rows.
        """
        recorded: list[Tensor] | list[None] = [None] * len(self.encoders)
        if input_ids is not None:
            length, rows = self.encoders[0].row_length, self.encoders[0].rows
            recorded = list(input_ids.reshape(-1, len(self.encoders), rows, length).unbind(1))
        texts = [
            encoder.encode(captions, tokens=tokens)
            for encoder, tokens in zip(self.encoders, recorded, strict=True)
        ]
        pooled = [text.pooled for text in texts if text.pooled is not None]
        return Conditioning(
            torch.cat([text.states for text in texts], dim=-1),
            pooled=pooled[-1] if pooled else None,
            time_ids=self._time_ids(len(captions), sizes) if self.reads_sizes else None,
        )

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Return the tokens (B,E,N,R) that E encoders read of captions, in N rows of R."""
        return torch.stack([encoder.tokenize(captions) for encoder in self.encoders], dim=1)

    def _time_ids(self, count: int, sizes: Tensor | None) -> Tensor:
        if self.fixed_sizes is not None:
            return self.fixed_sizes.expand(count, -1)
        assert sizes is not None, "this family reads sizes"
        return sizes
