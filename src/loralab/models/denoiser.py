"""One call signature for all UNets: noisy latents, timesteps, conditioning in; prediction out."""

from __future__ import annotations

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
            conditioning: ``hidden_states`` (B,L,D).
        """
        dtype = self.dtype
        prediction: Tensor = self.unet(
            noisy.to(dtype),
            timesteps,
            encoder_hidden_states=conditioning.hidden_states.to(dtype),
            return_dict=False,
        )[0]
        return prediction

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the base weights; adapters come later and are float32."""
        return next(self.unet.parameters()).dtype
