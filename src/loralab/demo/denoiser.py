"""Train the tiny UNet and text encoder from nothing, on cached latents of captioned emoji."""

import copy
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from loralab.diffusion.noise import sample_generator
from loralab.diffusion.objective import Objective
from loralab.diffusion.schedule import NoiseSchedule
from loralab.diffusion.weighting import loss_weights

from .captions import compose_caption
from .concepts import list_canvases
from .pipeline import save_pipeline
from .sources import (
    CANVASES,
    SEPIA,
    Subject,
    aspect_ratio,
    duotone,
    grayscale,
    read_subjects,
    render,
)
from .training import cosine_decay, load_checkpoint, save_checkpoint
from .vae import to_tensor

CANVAS_SHARES = {"square": 0.76, "tall": 0.12, "wide": 0.12}
STYLE_WEIGHTS = {"noto": 1.0, "twemoji": 0.55, "grayscale": 0.25, "sepia": 0.2}
DEMO_WEIGHT = 1.5  # subjects of the demo's image set are drawn more often than the others
LEARNING_RATE, EMA_DECAY, MIN_SNR_GAMMA = 1e-3, 0.999, 5.0


def build_unet() -> UNet2DConditionModel:
    """Return an untrained UNet over 4 x 16 x 16 latents: 4.5 million parameters."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(48, 96, 112),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=96,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained CLIP text encoder of width 96 and two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        projection_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_scheduler() -> DDIMScheduler:
    """Return the noise schedule of Stable Diffusion 1."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_objective(scheduler: DDIMScheduler) -> Objective:
    """Return the min-SNR weighted error of predicted noise."""
    schedule = NoiseSchedule.from_config(scheduler.config)
    weights = loss_weights(
        "min_snr",
        schedule.snr.values,
        prediction_type=schedule.prediction_type,
        strength=MIN_SNR_GAMMA,
    )
    return Objective(schedule, weights=weights)


def train_denoiser(
    packages: Path, work: Path, *, num_steps: int, batch_size: int, seed: int
) -> None:
    """Train UNet and text encoder; save an averaged pipeline to `work`/pipeline now and then.

    Resumes from `work`/denoiser.pt. Every draw depends on seed and step alone.
    """
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    model = nn.ModuleDict({"unet": build_unet(), "text": build_text_encoder(tokenizer)})
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    checkpoint = work / "denoiser.pt"
    parts = {"model": model, "average": average, "optimizer": optimizer}
    progress = load_checkpoint(checkpoint, **parts)
    batches = _Batches(read_subjects(packages), vae, tokenizer, seed)
    scheduler = build_scheduler()
    objective = build_objective(scheduler)
    running = 0.0
    for step in progress.steps(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine_decay(step, num_steps, warmup_steps=100)
        loss = _denoising_loss(model, objective, batches.sample(batch_size, step), seed, step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _update_average(average, model, step)
        running += float(loss.detach())
        if step % 50 == 49:
            print(f"denoiser step {step + 1}/{num_steps} loss {running / 50:.4f}", flush=True)
            running = 0.0
        if step % 100 == 99 or step + 1 == num_steps:
            save_checkpoint(checkpoint, progress, **parts)
            save_pipeline(work / "pipeline", vae, average["unet"], average["text"], work, scheduler)
    print(f"denoiser {progress.cpu_minutes():.1f} CPU minutes", flush=True)


@dataclass(frozen=True)
class Batch:
    """Latents of one shape and their captions."""

    latents: Tensor  # (B, 4, h, w)
    token_ids: Tensor  # (B, 77)


class _Batches:
    """Cached latents of every subject, style and canvas that suits the subject's shape."""

    def __init__(
        self, subjects: list[Subject], vae: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int
    ) -> None:
        self.tokenizer, self.seed = tokenizer, seed
        self.demo_labels = {*list_canvases("train"), *list_canvases("validation")}
        self.entries: dict[str, list[tuple[Subject, str]]] = {}
        self.weights: dict[str, list[float]] = {}
        self.latents: dict[str, Tensor] = {}
        for canvas in CANVASES:
            entries = [(s, style) for s in subjects for style in STYLE_WEIGHTS if _suits(s, canvas)]
            images = to_tensor([_render(subject, style, canvas) for subject, style in entries])
            with torch.no_grad():
                latents = [vae.encode(chunk).latent_dist.mean for chunk in images.split(64)]
            self.entries[canvas], self.latents[canvas] = entries, torch.cat(latents)
            self.weights[canvas] = [self._weight(*entry) for entry in entries]
            print(f"{canvas}: {len(entries)} latents, std {self.latents[canvas].std():.2f}")

    def sample(self, size: int, step: int) -> Batch:
        draw = random.Random(self.seed * 1_000_003 + step)
        [canvas] = draw.choices(list(CANVAS_SHARES), list(CANVAS_SHARES.values()))
        entries = self.entries[canvas]
        chosen = draw.choices(range(len(entries)), self.weights[canvas], k=size)
        captions = [compose_caption(entries[i][0].parts, entries[i][1], draw) for i in chosen]
        tokens = self.tokenizer(
            captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        return Batch(self.latents[canvas][chosen], tokens.input_ids)

    def _weight(self, subject: Subject, style: str) -> float:
        is_in_demo = subject.label in self.demo_labels
        return STYLE_WEIGHTS[style] * (DEMO_WEIGHT if is_in_demo else 1.0)


def _suits(subject: Subject, canvas: str) -> bool:
    ratio = aspect_ratio(subject.tiles["noto"])
    return {"square": True, "tall": ratio < 0.95, "wide": ratio > 1.08}[canvas]


def _render(subject: Subject, style: str, canvas: str) -> Image.Image:
    image = render(subject.tiles["twemoji" if style == "twemoji" else "noto"], canvas)
    match style:
        case "grayscale":
            return grayscale(image)
        case "sepia":
            return duotone(image, SEPIA)
    return image


def _denoising_loss(
    model: nn.ModuleDict, objective: Objective, batch: Batch, seed: int, step: int
) -> Tensor:
    """Return the loss of a batch at timesteps spread evenly over the range."""
    size = len(batch.latents)
    generators = [sample_generator(seed, step, str(i), "pretrain") for i in range(size)]
    jitter = torch.cat([torch.rand(1, generator=generator) for generator in generators])
    timesteps = ((torch.arange(size) + jitter) / size * objective.schedule.num_timesteps).long()
    sample = objective.draw(batch.latents, generators, timesteps=timesteps)
    context = model["text"](batch.token_ids).last_hidden_state
    prediction = model["unet"](sample.noisy, sample.timesteps, context).sample
    weight = torch.full((size,), 1 / size)
    return objective(prediction, batch.latents, sample, weight=weight).loss


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
