"""The VAE: images to moments, moments to latents, latents to images; float32 goes in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # diffusers' DiagonalGaussianDistribution clamps to it as well


class LatentCodec(nn.Module):
    """Encode and decode with a frozen ``AutoencoderKL``, in the dtype of its weights.

    Runs outside autocast, because half precision overflows in the SD VAEs.
    """

    def __init__(self, vae: nn.Module, *, latent_scale: float) -> None:
        super().__init__()
        self.vae: Any = vae.requires_grad_(False).eval()
        self.latent_scale = latent_scale

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Return mean and log-variance (B,2C,h,w), unscaled, of images (B,3,H,W) in [-1,1]."""
        with self._exact(images.device):
            moments: Tensor = self.vae.encode(images.to(self.vae.dtype)).latent_dist.parameters
        return moments.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B,3,H,W), clamped to [-1,1], of scaled latents (B,C,h,w)."""
        with self._exact(latents.device):
            images: Tensor = self.vae.decode(
                (latents.float() / self.latent_scale).to(self.vae.dtype), return_dict=False
            )[0]
        return images.float().clamp(-1.0, 1.0)

    def _exact(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, enabled=False)


def sample_latents(
    moments: Tensor, latent_scale: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """Return one draw of the posterior for every sample, scaled, (B,C,h,w) float32.

    Args:
        moments: (B,2C,h,w) mean and log-variance.
        generators: B generators on the CPU, so that a draw is the same on every device.
    """
    assert len(generators) == len(moments), "one generator a sample"
    mean, log_variance = moments.float().chunk(2, dim=1)
    std = torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE))
    draws = [torch.randn(mean.shape[1:], generator=generator) for generator in generators]
    return latent_scale * (mean + std * torch.stack(draws).to(mean.device))


def mean_latents(moments: Tensor, latent_scale: float) -> Tensor:
    """Return the posterior's mean, scaled, (B,C,h,w) float32."""
    return latent_scale * moments.float().chunk(2, dim=1)[0]
