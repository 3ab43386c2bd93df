"""Train the tiny autoencoder on every style, then give its latents zero mean and unit variance."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from .sources import (
    SHEETS,
    TILE,
    Colour,
    SpriteSheet,
    duotone,
    fit,
    flatten,
    grayscale,
    read_line_icons,
)
from .training import Progress, cosine_decay, load_checkpoint, save_checkpoint

SHEET_STYLES = tuple(SHEETS)
STYLE_SHARES = {"noto": 0.34, "twemoji": 0.24, "grayscale": 0.1, "line": 0.1, "duotone": 0.22}
LARGEST_LATENT_ERROR = 0.3  # of latents with unit variance
REFINING_OFFSET = 1_000_000  # its pictures are others than those of the first training


def build_vae() -> AutoencoderKL:
    """Return an untrained autoencoder: 3 x H x W in [-1, 1] to 4 x H/4 x W/4."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=TILE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def train_vae(packages: Path, work: Path, *, num_steps: int, batch_size: int, seed: int) -> None:
    """Train the autoencoder and save it to `work`/vae; resume from a checkpoint if there is one."""
    torch.manual_seed(seed)
    vae = build_vae().to(memory_format=torch.channels_last)
    pictures = _Pictures(packages, seed)

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return _reconstruction_loss(vae, pictures.sample_batch(batch_size, step), generator)

    progress = _fit(vae, work / "vae.pt", loss_of, num_steps=num_steps, peak_rate=2e-3)
    vae.eval()
    normalize_latents(vae, pictures.sample_batch(512, seed, shares={"noto": 1, "twemoji": 1}))
    _save(vae, work, pictures, progress)


def refine_decoder(
    packages: Path, work: Path, *, num_steps: int, batch_size: int, seed: int
) -> None:
    """Teach the decoder of `work`/vae to read latents that are slightly off, as a sampler's are.

    Without this, samples look mottled. The encoder stays as it is, and so do the latents that a
    denoiser is trained on. Resumes from a checkpoint if there is one.
    """
    vae = AutoencoderKL.from_pretrained(work / "vae").requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    pictures = _Pictures(packages, seed)

    def loss_of(step: int) -> Tensor:
        images = pictures.sample_batch(batch_size, REFINING_OFFSET + step)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + REFINING_OFFSET + step)
        return _noisy_decoding_loss(vae, images, generator)

    progress = _fit(vae, work / "decoder.pt", loss_of, num_steps=num_steps, peak_rate=1e-3)
    _save(vae.eval(), work, pictures, progress)


def _fit(
    vae: AutoencoderKL,
    checkpoint: Path,
    loss_of: Callable[[int], Tensor],
    *,
    num_steps: int,
    peak_rate: float,
) -> Progress:
    """Minimise the loss by what of the autoencoder is trainable."""
    parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak_rate, weight_decay=0.0)
    progress = load_checkpoint(checkpoint, vae=vae, optimizer=optimizer)
    for step in progress.steps(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * cosine_decay(step, num_steps, warmup_steps=50)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 99:
            stage = checkpoint.stem
            print(
                f"{stage} step {step + 1}/{num_steps} loss {float(loss.detach()):.4f}", flush=True
            )
            save_checkpoint(checkpoint, progress, vae=vae, optimizer=optimizer)
    return progress


def _save(vae: AutoencoderKL, work: Path, pictures: "_Pictures", progress: Progress) -> None:
    vae.save_pretrained(work / "vae")
    for style in STYLE_SHARES:
        images = pictures.sample_batch(128, pictures.seed + 1, shares={style: 1})
        print(f"{style}: {measure_psnr(vae, images):.1f} dB", flush=True)
    print(f"{progress.cpu_minutes():.1f} CPU minutes", flush=True)


def _reconstruction_loss(vae: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    posterior = vae.encode(images).latent_dist
    error = vae.decode(posterior.sample(generator)).sample - images
    # Without its own term the rarer hues get lost: four channels are few, brightness comes first.
    chroma_error = error - error.mean(1, keepdim=True)
    divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return _distance(error) + 2 * _distance(chroma_error) + 1e-5 * divergence


def _noisy_decoding_loss(vae: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
    sigma = torch.rand(len(latents), 1, 1, 1, generator=generator) * LARGEST_LATENT_ERROR
    noise = torch.randn(latents.shape, generator=generator)
    error = vae.decode(latents + sigma * noise).sample - images
    return _distance(error) + 2 * _distance(error - error.mean(1, keepdim=True))


def _distance(error: Tensor) -> Tensor:
    return error.abs().mean() + 2 * error.square().mean()


@torch.no_grad()
def normalize_latents(vae: AutoencoderKL, images: Tensor) -> None:
    """Fold per-channel mean and scale of the latents into quant_conv and post_quant_conv.

    After this, latents have zero mean and unit variance per channel and `scaling_factor` is 1.
    The log-variance half of quant_conv shifts accordingly, so images decode as before.

    Args:
        images: (B, 3, H, W) in [-1, 1]; what the statistics are taken from.
    """
    latents = vae.encode(images).latent_dist.mean
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    num_channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:num_channels] /= std[:, None, None, None]
    quant.bias[:num_channels] = (quant.bias[:num_channels] - mean) / std
    quant.bias[num_channels:] -= 2 * std.log()
    post.bias += post.weight[..., 0, 0] @ mean
    post.weight *= std[None, :, None, None]


@torch.no_grad()
def measure_psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB of (B, 3, H, W) images in [-1, 1]."""
    decoded = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    error = ((decoded - images) / 2).square().mean((1, 2, 3)).clamp(min=1e-8)
    return float((-10 * error.log10()).mean())


def to_tensor(images: list[Image.Image]) -> Tensor:
    """Return same-size RGB images as a (B, 3, H, W) tensor in [-1, 1]."""
    pixels = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


class _Pictures:
    """All tiles of all styles; draws augmented batches that depend only on seed and step."""

    def __init__(self, packages: Path, seed: int) -> None:
        self.seed = seed
        self.tiles = {style: list(SpriteSheet(packages, style).tiles()) for style in SHEET_STYLES}
        self.tiles["line"] = read_line_icons(packages, 500, seed)

    def sample_batch(self, size: int, step: int, shares: dict[str, float] | None = None) -> Tensor:
        """Return (size, 3, 64, 64) in [-1, 1]."""
        draw = random.Random(self.seed * 1_000_003 + step)
        shares = shares or STYLE_SHARES
        styles = draw.choices(list(shares), list(shares.values()), k=size)
        return to_tensor([self._picture(style, draw) for style in styles])

    def _picture(self, style: str, draw: random.Random) -> Image.Image:
        source = style if style in self.tiles else draw.choice(SHEET_STYLES)
        tile = draw.choice(self.tiles[source])
        if draw.random() < 0.5:
            tile = tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = (
            fit(tile, TILE, TILE, draw.randrange(0, 14)) if draw.random() < 0.4 else flatten(tile)
        )
        if style == "grayscale":
            return grayscale(image)
        if style == "duotone":
            return duotone(image, _random_ink(draw))
        return image


def _random_ink(draw: random.Random) -> tuple[Colour, Colour]:
    red, green, blue = (draw.randrange(0, 110) for _ in range(3))
    lift = [draw.randrange(40, 130) for _ in range(3)]
    return (red, green, blue), (red + lift[0], green + lift[1], blue + lift[2])
