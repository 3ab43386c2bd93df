"""The floor: the same LoRA training step written out by hand, with nothing around it.

Same classes, adapter and optimizer as the framework, but no Lightning loop, no data loading, no
logging: latents wait in memory. Nothing of loralab is imported, so what the framework costs is
the difference. As a program, `python floor.py RECORD STEPS`, it is the floor of a whole process.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer


class Floor:
    """The demo's model with adapters on UNet and text encoder, and its optimizer."""

    def __init__(self, base: str, adapters: dict[str, dict[str, Any]], *, clip_norm: float) -> None:
        """Load and inject.

        Args:
            base: Folder of the base model in diffusers' layout.
            adapters: For `unet` and `text_encoder`: rank, alpha, targets and lr.
            clip_norm: Largest norm of the gradient.
        """
        self.tokenizer = CLIPTokenizer.from_pretrained(f"{base}/tokenizer")
        self.schedule = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
        self.parts: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel.from_pretrained(f"{base}/unet", torch_dtype=torch.float32),
            "text_encoder": CLIPTextModel.from_pretrained(
                f"{base}/text_encoder", torch_dtype=torch.float32
            ),
        }
        groups = []
        for name, adapter in adapters.items():
            part = self.parts[name].requires_grad_(False).train()
            scale = {"r": adapter["rank"], "lora_alpha": adapter["alpha"]}
            inject_adapter_in_model(LoraConfig(target_modules=adapter["targets"], **scale), part)
            groups.append({"params": self.trainable(name), "lr": adapter["lr"]})
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.clip_norm = clip_norm

    def trainable(self, name: str) -> list[nn.Parameter]:
        """Return the adapter of one part."""
        return [p for p in self.parts[name].parameters() if p.requires_grad]

    def loss(self, latents: Tensor, captions: list[str], noise: Tensor, times: Tensor) -> Tensor:
        """Return the mean squared error of the predicted noise; latents are (B, C, h, w)."""
        tokens = self.tokenizer(
            captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        states = self.parts["text_encoder"](tokens.input_ids)[0]
        noisy = self.schedule.add_noise(latents, noise, times)
        prediction = self.parts["unet"](noisy, times, states, return_dict=False)[0]
        return nn.functional.mse_loss(prediction, noise)

    def step(self, latents: Tensor, captions: list[str]) -> None:
        """Make one optimizer step."""
        times = torch.randint(0, len(self.schedule), (len(latents),))
        self.loss(latents, captions, torch.randn_like(latents), times).backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


if __name__ == "__main__":
    # A training program needs these as well, whoever writes it.
    import lightning.pytorch  # noqa: F401
    from diffusers import AutoencoderKL  # noqa: F401

    record = torch.load(sys.argv[1])
    floor = Floor(**record["recipe"])
    for number in range(int(sys.argv[2])):
        floor.step(*record["batches"][number % len(record["batches"])])
