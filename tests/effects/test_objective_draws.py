"""Which timesteps and which noise are drawn, and what is kept of the base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from loralab.adapters.inject import adapter_disabled
from loralab.errors import ConfigError
from loralab.models.conditioning import Conditioning
from loralab.training.module import LoRATrainingModule
from tests.effects.objectives import drawn
from tests.effects.registry import effect
from tests.effects.runs import Tiny, changed

OFFSET, LAYERS = "objective.noise_offset=0.5", "objective.multires_iterations=4"
PERTURBED = "objective.input_perturbation=0.5"
SHARED = "objective.noise_rule=sd_scripts"


@effect("objective.timestep_sampling")
@pytest.mark.parametrize(
    ("word", "median"), [("uniform", 500), ("logit_normal", 500), ("cubic", 875)]
)
def test_timesteps_come_as_often_as_their_density_says(tiny: Tiny, word: str, median: int) -> None:
    # Half of all u are below 0.5: the middle timestep is 1000 / 2, sigmoid(0) and 1 - 0.5^3.
    timesteps = drawn(tiny, f"objective.timestep_sampling={word}", size=1000).timesteps
    assert timesteps.median().item() == pytest.approx(median, abs=60)
    spread = timesteps.float().std().item()
    assert spread == pytest.approx(
        {"uniform": 289, "logit_normal": 208, "cubic": 283}[word], abs=25
    )


@effect("objective.logit_normal_mean", "objective.logit_normal_std")
def test_mean_and_width_shape_a_logit_normal_density(tiny: Tiny) -> None:
    chosen = "objective.timestep_sampling=logit_normal"
    noisier = drawn(tiny, chosen, "objective.logit_normal_mean=1.0").timesteps
    narrower = drawn(tiny, chosen, "objective.logit_normal_std=0.1").timesteps
    assert noisier.median().item() == pytest.approx(731, abs=60)  # sigmoid(1) is 0.731
    assert narrower.float().std().item() == pytest.approx(25, abs=5)  # the slope there is 1 / 4


@effect("objective.timestep_spread")
@pytest.mark.parametrize(("word", "most"), [("independent", 20), ("stratified", 1)])
def test_a_window_covers_the_range_as_evenly_as_chosen(tiny: Tiny, word: str, most: int) -> None:
    timesteps = drawn(tiny, f"objective.timestep_spread={word}", size=100).timesteps
    counts = torch.bincount(timesteps // 10, minlength=100)
    assert counts.max() <= most
    assert (counts.max() == 1) == (word == "stratified")


@effect("objective.timestep_spread")
def test_antithetic_timesteps_come_in_mirrored_pairs(tiny: Tiny) -> None:
    timesteps = drawn(tiny, "objective.timestep_spread=antithetic").timesteps
    sums = timesteps[::2] + timesteps[1::2]
    assert set(sums.tolist()) <= {998, 999, 1000}


@effect("objective.timestep_spread")
def test_a_step_of_one_image_has_nothing_to_spread(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"^objective\.timestep_spread is stratified, but a step"):
        tiny.config("objective.timestep_spread=stratified", "data.batch_size=1")


@effect("objective.timestep_spread")
def test_a_run_spreads_its_timesteps_over_each_window(tiny: Tiny) -> None:
    """Two micro-batches of two make a window: one timestep in each quarter."""
    options = ("objective.timestep_spread=stratified", "trainer.accumulate_grad_batches=2")
    built = tiny.build(*options)
    seen: list[Tensor] = []
    record = built.job.module.record

    def note(terms: object, latents: object, sample: object, weight: object) -> None:
        record(terms, latents, sample, weight)  # type: ignore[arg-type]
        seen.append(sample.timesteps)  # type: ignore[attr-defined]

    built.job.module.record = note  # type: ignore[method-assign]
    built.fit()
    windows = [torch.cat(seen[start : start + 2]) for start in range(0, len(seen), 2)]
    whole = [window for window in windows if len(window) == 4]
    assert len(whole) >= 2
    for window in whole:
        assert sorted((window // 250).tolist()) == [0, 1, 2, 3]


def shift(tiny: Tiny, *overrides: str) -> Tensor:
    """Return what options add to the plain noise, (200, 4, 8, 6)."""
    return drawn(tiny, *overrides).noise - drawn(tiny).noise


@effect("objective.noise_offset")
def test_offset_shifts_whole_channels_by_its_strength(tiny: Tiny) -> None:
    found = shift(tiny, OFFSET)
    torch.testing.assert_close(found, found[..., :1, :1].expand_as(found), rtol=0, atol=1e-6)
    assert found.std().item() == pytest.approx(0.5, rel=0.15)


@effect("objective.noise_offset_random")
def test_random_strength_shifts_by_less(tiny: Tiny) -> None:
    ratio = shift(tiny, OFFSET, "objective.noise_offset_random=true") / shift(tiny, OFFSET)
    strength = ratio.flatten(1).median(dim=1).values
    assert 0 <= strength.min() < 0.1 < 0.9 < strength.max() <= 1
    with pytest.raises(ConfigError, match=r"^objective\.noise_offset_random is true, but .* is 0"):
        tiny.config("objective.noise_offset_random=true")


@effect("objective.noise_offset_adaptive")
def test_adaptive_strength_grows_with_the_latents_mean(tiny: Tiny) -> None:
    # The latents are 0.5, so a scale of 1 makes a strength of 0.5 one of 1.
    ratio = shift(tiny, OFFSET, "objective.noise_offset_adaptive=1") / shift(tiny, OFFSET)
    torch.testing.assert_close(ratio.median(), torch.tensor(2.0), rtol=1e-3, atol=0)


def likeness(noise: Tensor) -> float:
    """Return the correlation of cells side by side."""
    return float((noise[..., 1:] * noise[..., :-1]).mean())


@effect("objective.multires_iterations", "objective.multires_discount")
def test_layers_of_noise_make_neighbours_alike(tiny: Tiny) -> None:
    strong = "objective.multires_discount=0.9"
    plain, weak, one, four = (
        likeness(drawn(tiny, *options).noise)
        for options in (
            (),
            (LAYERS,),
            ("objective.multires_iterations=1", strong),
            (LAYERS, strong),
        )
    )
    assert abs(plain) < 0.02 < weak < one < four


@effect("objective.input_perturbation")
def test_perturbation_is_on_the_input_and_not_in_the_target(tiny: Tiny) -> None:
    late = "objective.min_timestep=999"  # nothing but noise, nearly
    plain, perturbed = drawn(tiny, late), drawn(tiny, late, PERTURBED)
    assert torch.equal(plain.noise, perturbed.noise)
    added = perturbed.noisy - plain.noisy
    assert added.std().item() == pytest.approx(0.5, rel=0.05)


@effect("objective.input_perturbation_random")
def test_random_perturbation_is_weaker(tiny: Tiny) -> None:
    late = "objective.min_timestep=999"
    plain = drawn(tiny, late)
    added = drawn(tiny, late, PERTURBED, "objective.input_perturbation_random=true").noisy
    strength = (added - plain.noisy).std(dim=(1, 2, 3))
    assert strength.min() < 0.1 < 0.4 < strength.max() < 0.6


@effect("objective.noise_rule")
def test_as_sd_scripts_a_micro_batch_shares_strength_and_size(tiny: Tiny) -> None:
    random = (OFFSET, "objective.noise_offset_random=true")
    strength = (shift(tiny, *random, SHARED) / shift(tiny, OFFSET)).flatten(1).median(dim=1).values
    assert strength.max() - strength.min() < 1e-3
    own, shared = drawn(tiny, LAYERS).noise, drawn(tiny, LAYERS, SHARED).noise
    assert own.square().mean(dim=(1, 2, 3)).std() < 1e-5
    assert shared.square().mean(dim=(1, 2, 3)).std() > 0.05
    assert shared.std().item() == pytest.approx(1, rel=1e-4)


@effect("objective.preservation", "objective.preservation_weight")
def test_preservation_holds_the_adapter_near_the_base(tiny: Tiny) -> None:
    """The heavier the weight, the less the adapter's output differs from the base's."""

    def distance(*overrides: str) -> float:
        adapter = tiny.run(*overrides, "objective.min_timestep=400", "trainer.max_steps=6").adapter
        ups = [value for key, value in adapter.items() if key.endswith("lora_up.weight")]
        return float(torch.cat([up.flatten() for up in ups]).norm())

    keep = "objective.preservation=output"
    free, held, held_fast = (
        distance(),
        distance(keep),
        distance(keep, "objective.preservation_weight=100"),
    )
    assert held_fast < held < free


@pytest.mark.slow
@effect("objective.preservation")
def test_outside_the_mask_the_base_is_kept_while_the_inside_is_learnt(
    tiny: Tiny, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    pixels[:, :32, 3], pixels[:, 32:, 3] = 255, 0
    Image.fromarray(pixels).save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("a thing")

    def change(*overrides: str) -> tuple[float, float]:
        """Return the change of the prediction inside and outside of the mask."""
        built = tiny.build(
            f"data.image_dir={tmp_path}", "data.masks=alpha", "trainer.max_steps=30",
            "objective.min_timestep=400", "adapter.unet.targets=[full]", "adapter.rank=8",
            "adapter.text_encoder.enabled=false", *overrides,
        )  # fmt: skip
        built.fit()
        module, batch = built.job.module.eval(), built.epoch()[0]
        latents = module.latents(batch).expand(8, -1, -1, -1)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        steps = torch.linspace(420, 980, 8).long()
        sample = module.objective.draw(latents, [], timesteps=steps, noise=noise)
        conditioning = Conditioning.cat([module.conditioning(batch)] * 8)
        with torch.no_grad():
            ours = module.denoiser(sample.noisy, steps, conditioning)
            with adapter_disabled(module.adapted.values()):
                base = module.denoiser(sample.noisy, steps, conditioning)
        by_column = (ours - base).square().mean(dim=(0, 1, 2))
        return float(by_column[:4].mean()), float(by_column[4:].mean())

    inside, outside = change()
    learnt, kept = change("objective.preservation=outside_mask")
    assert kept < 0.6 * outside, (kept, outside)
    assert learnt > 0.5 * inside, (learnt, inside)


@effect("objective.preservation")
def test_without_masks_nothing_is_outside_of_one(tiny: Tiny) -> None:
    with pytest.raises(
        ConfigError, match=r"^objective\.preservation is outside_mask, but data\.ma"
    ):
        tiny.config("objective.preservation=outside_mask")


@effect("objective.preservation")
def test_an_adapter_that_changes_nothing_pays_nothing(tiny: Tiny) -> None:
    """At the first step the adapter is the identity, so student and teacher agree to the bit."""
    one = "trainer.max_steps=1"
    plain, kept = tiny.run(one), tiny.run(one, "objective.preservation=output")
    assert changed(plain.adapter, kept.adapter) == []


@effect("objective.preservation")
def test_the_teacher_is_the_base_and_leaves_no_trace(tiny: Tiny) -> None:
    built = tiny.build("objective.preservation=output", "adapter.text_encoder.enabled=true")
    module: LoRATrainingModule = built.job.module
    batch = built.epoch()[0]
    sample = module.objective.draw(module.latents(batch), module.generators(batch, "noise"))
    identity = module.teacher_prediction(batch, sample)
    for part in module.adapted.values():
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.data.normal_()
    teacher = module.teacher_prediction(batch, sample)
    assert teacher is not None
    assert identity is not None
    assert torch.equal(teacher, identity), "whatever was learnt, also by the text encoder"
    assert not teacher.requires_grad
    assert any(p.requires_grad for part in module.adapted.values() for p in part.parameters())
