"""Pictures from prompts: a small DDIM loop for previews (Song et al. 2021, arXiv:2010.02502)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from loralab.models.codec import LatentCodec
from loralab.models.conditioning import ClipConditioner, Conditioning
from loralab.models.denoiser import Denoiser
from loralab.models.modes import eval_mode


@torch.no_grad()
def sample_images(
    *,
    denoiser: Denoiser,
    conditioner: ClipConditioner,
    codec: LatentCodec,
    schedule_config: Mapping[str, Any],
    prompts: Sequence[str],
    negative_prompt: str,
    num_steps: int,
    guidance_scale: float,
    seed: int,
    height: int,
    width: int,
    latent_channels: int,
    vae_factor: int,
    prompts_at_once: int = 4,
) -> Tensor:
    """Return one picture a prompt, (B,3,H,W) float32 in [0,1] on the CPU.

    Noise depends on the seed and the prompt's position alone. The networks run in eval mode and
    get their modes back afterwards. A guidance scale of 1 or less means no guidance.

    Args:
        height: Pixels, a multiple of ``vae_factor``; ``width`` too.
        schedule_config: The base model's scheduler config; its prediction type is respected.
        prompts_at_once: Few, so that previews fit beside a training run.
    """
    assert height % vae_factor == 0, "the picture must be whole latent cells"
    assert width % vae_factor == 0, "the picture must be whole latent cells"
    shape = (latent_channels, height // vae_factor, width // vae_factor)
    device = next(denoiser.parameters()).device
    ddim = DDIMScheduler.from_config(  # type: ignore[no-untyped-call]
        dict(schedule_config), clip_sample=False
    )
    images = [torch.empty(0, 3, height, width)]
    with eval_mode(denoiser, conditioner, codec):
        for start in range(0, len(prompts), prompts_at_once):
            chunk = list(prompts[start : start + prompts_at_once])
            noise = [prompt_noise(shape, seed=seed, index=start + i) for i in range(len(chunk))]
            sizes = torch.tensor([[height, width, 0, 0, height, width]]).expand(len(chunk), -1)
            latents = _denoise(
                denoiser,
                conditioner.encode(chunk, sizes=sizes),
                conditioner.encode([negative_prompt] * len(chunk), sizes=sizes),
                torch.stack(noise).to(device),
                ddim,
                num_steps=num_steps,
                guidance_scale=guidance_scale,
            )
            images += [codec.decode(latent[None]).cpu() / 2 + 0.5 for latent in latents]
    return torch.cat(images)


def prompt_noise(shape: tuple[int, int, int], *, seed: int, index: int) -> Tensor:
    """Return the start noise (C,h,w) float32 of the prompt at ``index``, drawn on the CPU."""
    digest = hashlib.sha256(f"{seed}:{index}:preview".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=generator)


def _denoise(
    denoiser: Denoiser,
    positive: Conditioning,
    negative: Conditioning,
    latents: Tensor,
    scheduler: Any,
    *,
    num_steps: int,
    guidance_scale: float,
) -> Tensor:
    guided = guidance_scale > 1
    if guided:
        positive = Conditioning.cat([negative, positive])
    scheduler.set_timesteps(num_steps)
    for timestep in scheduler.timesteps:
        noisy = torch.cat([latents, latents]) if guided else latents
        timesteps = timestep.to(latents.device).expand(len(noisy))
        prediction = denoiser(noisy, timesteps, positive).float()
        if guided:
            without, toward = prediction.chunk(2)
            prediction = without + guidance_scale * (toward - without)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return latents
