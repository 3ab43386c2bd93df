"""One call signature for all UNets: noisy latents, timesteps, conditioning in; prediction out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from loralab.models.conditioning import Conditioning


class Denoiser(nn.Module):
    """A ``UNet2DConditionModel`` behind the signature that the training step uses."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the prediction (B,C,h,w) in the weights' or autocast's dtype.

        Args:
            noisy: (B,C,h,w).
            timesteps: (B,) int64.
            conditioning: What the family's conditioner made for these B pictures.
        """
        dtype = self.dtype
        prediction: Tensor = self.unet(
            noisy.to(dtype),
            timesteps,
            encoder_hidden_states=conditioning.hidden_states.to(dtype),
            return_dict=False,
            **self._sizes(conditioning),
        )[0]
        return prediction

    def _sizes(self, conditioning: Conditioning) -> dict[str, Any]:
        if conditioning.pooled is None:
            return {}
        assert conditioning.time_ids is not None, "pooled text comes with sizes"
        time_ids = conditioning.time_ids.to(conditioning.pooled.device)
        # Whole numbers as they are: in bfloat16 1216 would be told from neither 1212 nor 1220.
        return {
            "added_cond_kwargs": {
                "text_embeds": conditioning.pooled.to(self.dtype),
                "time_ids": time_ids.float(),
            }
        }

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the base weights; adapters come later and are float32."""
        return next(self.unet.parameters()).dtype
