"""Configuration of loss, rate and validation."""

from __future__ import annotations

from dataclasses import dataclass

from loralab.config.choices import (
    HuberSchedule,
    Loss,
    NoiseRule,
    NoiseScheduleSource,
    Preservation,
    Reduction,
    Schedule,
    SchedulePrecision,
    StepUnit,
    TimestepSampling,
    TimestepSpread,
    Weighting,
    WeightRule,
)
from loralab.config.option import option


@dataclass(kw_only=True)
class ObjectiveRecord:
    """The training loss."""

    loss: Loss = option(Loss.l2, "Cost of a wrong prediction.")
    huber_c: float = option(0.1, "Threshold of loss huber and smooth_l1.", low=1e-4)
    huber_schedule: HuberSchedule = option(
        HuberSchedule.snr, "How that threshold changes with the timestep."
    )
    reduction: Reduction = option(
        Reduction.by_weight,
        "Divide losses by the weights of the step's images and the area of masks, or by counts "
        "of images in the micro-batch and of all cells.",
    )
    weighting: Weighting = option(Weighting.constant, "Loss weight by signal-to-noise ratio.")
    weight_rule: WeightRule = option(
        WeightRule.exact,
        "Weights of the schedule trained on, alike for every prediction type, or as sd-scripts.",
    )
    min_snr_gamma: float = option(5.0, "Gamma of weighting min_snr and soft_min_snr.", low=1e-3)
    p2_gamma: float = option(1.0, "Gamma of weighting p2.", low=0.0)
    v_like_scale: float = option(1.0, "Share of the velocity's loss in weighting v_like.", low=0.0)
    zero_terminal_snr: bool = option(
        False, "Rescale the noise schedule so that its last timestep is pure noise."
    )
    noise_schedule: NoiseScheduleSource = option(
        NoiseScheduleSource.base,
        "Schedule in the base's files, or the one that Stable Diffusion was published with, "
        "whatever they say.",
    )
    schedule_precision: SchedulePrecision = option(
        SchedulePrecision.double,
        "Precision in which the noise schedule is multiplied up; single is that of sd-scripts and "
        "diffusers, whose first signal-to-noise ratios are wrong in the fourth digit.",
    )
    timestep_sampling: TimestepSampling = option(
        TimestepSampling.uniform, "How often which timesteps are drawn."
    )
    logit_normal_mean: float = option(0.0, "Of timestep_sampling logit_normal: above 0 is noisier.")
    logit_normal_std: float = option(1.0, "Of timestep_sampling logit_normal: width.", low=1e-3)
    timestep_spread: TimestepSpread = option(
        TimestepSpread.independent, "How evenly the timesteps of one step cover the range."
    )
    min_timestep: int = option(0, "Smallest timestep trained on.", low=0, high=999)
    max_timestep: int = option(1000, "Timesteps trained on are below this.", low=1, high=1000)
    noise_rule: NoiseRule = option(
        NoiseRule.per_sample, "Draw each image's noise by itself, or as sd-scripts."
    )
    noise_offset: float = option(0.0, "Strength of a shift of whole channels of noise.", low=0.0)
    noise_offset_random: bool = option(False, "Draw that strength from 0 to noise_offset.")
    noise_offset_adaptive: float = option(
        0.0, "Added to that strength, times the size of the channel's mean latent."
    )
    multires_iterations: int = option(0, "Coarser layers of noise, at most so many.", low=0)
    multires_discount: float = option(
        0.3, "Weight of a layer as a multiple of the one before.", low=0.0, high=1.0
    )
    input_perturbation: float = option(
        0.0, "Strength of noise on the model's input that is not in its target.", low=0.0
    )
    input_perturbation_random: bool = option(
        False, "Draw that strength from 0 to input_perturbation."
    )
    preservation: Preservation = option(
        Preservation.none, "What is kept of the base's own predictions; needs no class images."
    )
    preservation_weight: float = option(
        1.0, "Weight of the mean squared distance from the base's prediction.", low=1e-6
    )


@dataclass(kw_only=True)
class SchedulerRecord:
    """The learning-rate schedule, in optimizer steps."""

    kind: Schedule = option(Schedule.constant, "Shape of the curve.")
    warmup_steps: int = option(0, "Steps of linear warm-up.", low=0)
    warmup_fraction: float = option(
        0.0,
        "Warm-up as a fraction of all steps, rounded down; give this or warmup_steps.",
        low=0.0,
        high=1.0,
    )
    warmup_start_factor: float = option(
        0.0, "Rate of the first warm-up step as a multiple of the peak.", low=0.0, high=1.0
    )
    num_cycles: int | None = option(None, "Cycles of cosine_with_restarts.", low=1)
    power: float | None = option(None, "Power of polynomial; 1 is a straight line.", low=1e-3)
    end_factor: float | None = option(
        None, "Rate at the end, or least rate of plateau, as a multiple of the peak.",
        low=0.0, high=1.0,
    )  # fmt: skip
    timescale: int | None = option(
        None, "Steps of inverse_sqrt; after three times as many the rate is half the peak.", low=1
    )
    decay_fraction: float | None = option(
        None, "Share of the steps after warm-up in which warmup_stable_decay falls.",
        low=0.0, high=1.0,
    )  # fmt: skip
    start_factor: float | None = option(
        None, "Rate at which one_cycle starts, as a multiple of the peak.", low=0.0, high=1.0
    )
    rise_fraction: float | None = option(
        None, "Share of all steps in which one_cycle rises.", low=0.0, high=1.0
    )
    gamma: float | None = option(
        None, "Factor of one fall of step, multistep, exponential or plateau.", low=0.0, high=1.0
    )
    step_size: int | None = option(
        None, "Length after which step and exponential have fallen by gamma.", low=1
    )
    milestones: list[int] = option(list, "Where multistep falls, counted from the run's start.")
    unit: StepUnit | None = option(None, "What step_size and milestones count: steps or epochs.")
    patience: int | None = option(
        None, "Validations without improvement that plateau lets pass.", low=0
    )
    threshold: float | None = option(
        None, "Least relative improvement of val/loss that counts for plateau.", low=0.0, high=1.0
    )


@dataclass(kw_only=True)
class ValidationRecord:
    """Loss on held-out images at fixed noise and timesteps: comparable between runs."""

    fraction: float = option(
        0.0, "Share of the images held out, chosen by content.", low=0.0, high=0.9
    )
    folder: str | None = option(None, "Folder of held-out images, instead of a share.")
    files: list[str] = option(
        list, "Images held out, each by its path; those among the training images are taken out."
    )
    seed: int = option(0, "Seed of the validation noise.", low=0)
    strata: int = option(4, "Timesteps each image is measured at, evenly spread.", low=1, high=100)
    every_n_steps: int | None = option(
        None, "Steps between validations; null validates at the end only.", low=1
    )
    train_probe: bool = option(
        False, "Measure as many trained images too; the gap shows overfitting and raises an alarm."
    )
    patience: int | None = option(
        None, "Stop after so many validations without improvement; null never stops.", low=1
    )
    min_improvement: float = option(
        0.0, "Gain that counts as improvement, in standard errors of the paired gain.", low=0.0
    )
    keep_best: bool = option(
        False, "Keep the checkpoint with the lowest val/loss and export it beside the last.",
        affects_result=False,
    )  # fmt: skip
