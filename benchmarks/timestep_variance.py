"""How much steadier spread timesteps make the loss of a step, on the demo base at fixed weights.

`python benchmarks/timestep_variance.py [WINDOWS]` takes eight images of the demo, always the same,
and measures the loss of many windows with each spread in turn. Nothing is trained: windows differ
in noise and timesteps only, so the variance printed is that of a step's estimate of one number.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence

import torch
from hydra import compose, initialize_config_dir

from loralab.app.build import build
from loralab.app.folders import choose_folder
from loralab.app.logs import quiet_libraries
from loralab.app.preflight import preflight
from loralab.config.parse import parse_config
from loralab.config.store import conf_dir, register
from loralab.diffusion.noise import position_seed, sample_generator
from loralab.diffusion.objective import Objective
from loralab.diffusion.timesteps import SPREADS, TimestepSampler, WindowPlace
from loralab.training.module import LoRATrainingModule

SIZE = 8  # images in a window


def main(num_windows: int) -> None:
    """Print mean and variance of the loss by spread, and how far the variance fell."""
    losses = losses_by_spread(num_windows)
    variances = {spread: torch.tensor(values).var().item() for spread, values in losses.items()}
    print(f"{num_windows} windows of {SIZE} images, noise prediction, plain squared error")
    for spread, values in losses.items():
        ratio = variances[spread] / variances["independent"]
        mean = torch.tensor(values).mean().item()
        print(f"{spread:12} mean {mean:.4f} variance {variances[spread]:.2e} ratio {ratio:.2f}")


@torch.no_grad()
def losses_by_spread(num_windows: int) -> dict[str, list[float]]:
    """Return the loss of each window by spread; images and weights are the same in all."""
    module, batch = demo_module()
    latents, conditioning = module.latents(batch), module.conditioning(batch)
    weight = torch.full((SIZE,), 1 / SIZE)
    losses: dict[str, list[float]] = {spread: [] for spread in SPREADS}
    for spread in SPREADS:
        objective = Objective(module.objective.schedule, timesteps=TimestepSampler(spread=spread))
        for number in range(num_windows):
            sample = objective.draw(
                latents, _generators(number, batch["keys"]), window=_window(number)
            )
            prediction = module.denoiser(sample.noisy, sample.timesteps, conditioning)
            terms = objective(prediction, latents, sample, weight=weight)
            losses[spread].append(float(terms.loss))
    return losses


def marginal(spread: str, *, num_windows: int = 20_000, bins: int = 50) -> tuple[float, float]:
    """Return chi-square of the first image's timesteps in equal bins, and its p.

    One image a window: those of one window are not independent, which is the point of spreading.
    """
    sampler, keys = TimestepSampler(spread=spread), [f"image {n}" for n in range(SIZE)]
    drawn = [sampler(_generators(n, keys), _window(n))[0] for n in range(num_windows)]
    counts = torch.stack(drawn).bincount(minlength=1000).view(bins, -1).sum(dim=1).double()
    expected = num_windows / bins
    chi_square = ((counts - expected).square() / expected).sum()
    freedom = torch.tensor((bins - 1) / 2, dtype=torch.float64)
    return float(chi_square), float(torch.special.gammaincc(freedom, chi_square / 2))


def _generators(number: int, keys: Sequence[str]) -> list[torch.Generator]:
    return [sample_generator(0, number, key, "noise") for key in keys]


def _window(number: int) -> WindowPlace:
    seed = position_seed(0, number, "window 0", "timesteps")
    return WindowPlace(first=0, size=SIZE, jitter_seed=seed)


def demo_module() -> tuple[LoRATrainingModule, dict]:
    """Return the demo's module in evaluation, and one batch of eight training images."""
    register()
    folder = tempfile.mkdtemp()
    overrides = [
        "experiment=demo",
        f"data.batch_size={SIZE}",
        "logger=none",
        "preview=none",
        f"output_dir={folder}",
        f"data.latent_cache.directory={folder}/cache",
    ]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = parse_config(compose("train", overrides=overrides))
    quiet_libraries()
    run_folder = choose_folder(config)
    job = build(config, preflight(config, run_folder), run_folder)
    job.datamodule.prepare_data()
    full = (batch for batch in job.datamodule.train_dataloader() if len(batch["keys"]) == SIZE)
    return job.module.eval(), next(full)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
