"""Training on a recording, written anew from diffusers, transformers and torch; nothing of ours.

The UNet, the text encoder and the noise schedule are those of the libraries, the LoRA layers and
the loop are written out here. `loralab replay` has to come to the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel


@dataclass(frozen=True)
class Recipe:
    """How the recorded run trained."""

    rate: float
    num_steps: int
    text_rate: float | None = None
    epoch_length: int | None = None
    prediction_type: str = "epsilon"
    min_snr: float | None = None
    accumulation: int = 1
    clip_norm: float = 1.0
    clip_skip: int = 1
    schedule: str = "constant"
    num_warmup: int = 0
    num_cycles: int = 1


@dataclass
class Trace:
    """What came of it: a loss for each micro-batch, norm and rate for each step, the adapter."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    text_rates: list[float] = field(default_factory=list)
    adapter: dict[str, Tensor] = field(default_factory=dict)


class LoraLayer(nn.Module):
    """A frozen layer, plus alpha / rank times up(down(x))."""

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / down.shape[0]
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())

    def forward(self, x: Tensor) -> Tensor:
        # The base first: the order decides in which order gradients are added up, to the last bit.
        result: Tensor = self.base(x)
        if isinstance(self.base, nn.Conv2d):
            stride, padding = self.base.stride, self.base.padding
            inner = nn.functional.conv2d(x, self.down, stride=stride, padding=padding)
            return result + nn.functional.conv2d(inner, self.up) * self.scale
        inner = nn.functional.linear(x, self.down)
        return result + nn.functional.linear(inner, self.up) * self.scale


def train(base: Path, batches: Path, start: Path, recipe: Recipe) -> Trace:
    """Train the adapter of a kohya file on recorded micro-batches of a diffusers folder (SD1)."""
    unet: Any = UNet2DConditionModel.from_pretrained(base / "unet").float().train()
    text: Any = CLIPTextModel.from_pretrained(base / "text_encoder").float().train()
    unet.requires_grad_(False)
    text.requires_grad_(False)
    # Text encoder first, as `LoRANetwork` holds them and clips them.
    layers = attach({"lora_te_text_model": text, "lora_unet": unet}, load_file(start))
    parameters = [weight for layer in layers.values() for weight in (layer.down, layer.up)]
    groups: list[dict[str, Any]] = [
        {"params": [w for n, y in layers.items() if n.startswith(part) for w in (y.down, y.up)]}
        for part in ("lora_te", "lora_unet")
    ]
    groups[0]["lr"] = recipe.text_rate or recipe.rate
    # What sd-scripts trains on, whatever the folder's own scheduler says.
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, weight_decay=0.01)
    rates = get_scheduler(
        recipe.schedule,
        optimizer,
        num_warmup_steps=recipe.num_warmup,
        num_training_steps=recipe.num_steps,
        num_cycles=recipe.num_cycles,
    )
    trace = Trace()
    entries = micro_batches(load_file(batches))
    length, waiting = recipe.epoch_length or len(entries), 0
    for number, entry in enumerate(entries, 1):
        loss = micro_loss(unet, text, schedule, entry, recipe)
        trace.losses.append(float(loss.detach()))
        (loss / recipe.accumulation).backward()
        waiting += 1
        if waiting == recipe.accumulation or number % length == 0 or number == len(entries):
            waiting = 0
            norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            trace.norms.append(float(norm))
            trace.rates.append(rates.get_last_lr()[1])
            trace.text_rates.append(rates.get_last_lr()[0])
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
    for name, layer in layers.items():
        trace.adapter[f"{name}.lora_down.weight"] = layer.down.detach()
        trace.adapter[f"{name}.lora_up.weight"] = layer.up.detach()
        trace.adapter[f"{name}.alpha"] = torch.tensor(layer.scale * layer.down.shape[0])
    return trace


def attach(parts: dict[str, nn.Module], state: dict[str, Tensor]) -> dict[str, LoraLayer]:
    """Put LoRA layers in place of the modules that a kohya file names."""
    layers = {}
    for prefix, part in parts.items():
        for path, module in list(part.named_modules()):
            name = f"{prefix}_{path.replace('.', '_')}"
            if f"{name}.alpha" not in state:
                continue
            down, up = state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"]
            layers[name] = LoraLayer(module, down, up, float(state[f"{name}.alpha"]))
            parent, _, child = path.rpartition(".")
            setattr(part.get_submodule(parent), child, layers[name])
    assert 3 * len(layers) == len(state), "modules of the file that the model does not have"
    return layers


def micro_batches(content: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the tensors of each micro-batch, in order."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, tensor in content.items():
        number, _, name = key.partition(".")
        found.setdefault(int(number), {})[name] = tensor
    return [found[number] for number in sorted(found)]


def micro_loss(
    unet: Any, text: Any, schedule: Any, entry: dict[str, Tensor], recipe: Recipe
) -> Tensor:
    """Return the loss of a micro-batch before it is divided by the accumulation."""
    latents, noise, timesteps = entry["latents"], entry["noise"], entry["timesteps"]
    noisy = schedule.add_noise(latents, noise, timesteps)
    states = encode(text, entry["input_ids"], recipe.clip_skip)
    prediction = unet(noisy, timesteps, encoder_hidden_states=states).sample
    target = noise
    if recipe.prediction_type == "v_prediction":
        target = schedule.get_velocity(latents, noise, timesteps)
    losses = (prediction - target).square().mean(dim=(1, 2, 3))
    if recipe.min_snr is not None:
        snr = compute_snr(schedule, timesteps)
        divisor = snr + 1 if recipe.prediction_type == "v_prediction" else snr
        losses = losses * (snr.clamp(max=recipe.min_snr) / divisor)
    if "loss_weight" not in entry:
        return losses.mean()
    return (losses * entry["loss_weight"]).sum() * recipe.accumulation


def encode(text: Any, tokens: Tensor, clip_skip: int) -> Tensor:
    """Return the states of (B, N, 77) tokens: row by row, inner start and end states left out."""
    rows = tokens.shape[1]
    output = text(tokens.flatten(0, 1), output_hidden_states=True)
    states = text.final_layer_norm(output.hidden_states[-clip_skip])
    states = states.unflatten(0, (-1, rows))
    pieces = [states[:, 0, :1], *(states[:, row, 1:-1] for row in range(rows))]
    return torch.cat([*pieces, states[:, -1, -1:]], dim=1)
