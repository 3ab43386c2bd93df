"""The objective's options and the base's own schedule -> schedule and objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from loralab.config.choices import (
    NoiseRule,
    NoiseScheduleSource,
    Reduction,
    SchedulePrecision,
    Weighting,
    WeightRule,
)
from loralab.config.objective_rules import prediction_problems
from loralab.config.records import RunConfig
from loralab.config.training_records import ObjectiveRecord
from loralab.diffusion.losses import HUBER_SCHEDULES
from loralab.diffusion.noise import InputPerturbation, NoiseRecipe
from loralab.diffusion.objective import LossRecipe, Objective
from loralab.diffusion.schedule import NoiseSchedule
from loralab.diffusion.timesteps import TimestepSampler
from loralab.diffusion.weighting import loss_weights, sd_scripts_weights
from loralab.errors import ConfigError, Problem
from loralab.models.family import ModelFacts

STABLE_DIFFUSION: Mapping[str, Any] = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "num_train_timesteps": 1000,
}  # fmt: skip
"""The schedule that Stable Diffusion 1, 2 and XL were published with."""


def check_objective(config: RunConfig, facts: ModelFacts | None) -> None:
    """Compare the objective with what the base's files say.

    Raises:
        ConfigError: Every option that does not fit this base.
    """
    if facts is None:
        return
    problems: list[Problem] = []
    if config.model.prediction_type is None:  # else the rules have looked at it already
        problems += prediction_problems(config, facts.prediction_type)
    schedule = chosen_schedule(config, facts.schedule_config)
    num_timesteps = schedule.get("num_train_timesteps", 1000)
    if config.objective.max_timestep > num_timesteps:
        problems.append(
            Problem(
                "objective.max_timestep",
                f"objective.max_timestep is {config.objective.max_timestep}; this base was made "
                f"with {num_timesteps} timesteps. Use {num_timesteps} or less.",
            )
        )
    if problems:
        raise ConfigError(*problems)


def chosen_schedule(config: RunConfig, own: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the scheduler's config that a run goes by: the base's own, or Stable Diffusion's."""
    if config.objective.noise_schedule is NoiseScheduleSource.base:
        return own
    return {**own, **STABLE_DIFFUSION, "trained_betas": None, "rescale_betas_zero_snr": False}


def build_objective(config: RunConfig, schedule_config: Mapping[str, Any]) -> Objective:
    """Return the objective over the run's schedule."""
    options, schedule = config.objective, build_schedule(config, schedule_config)
    schedule_config = chosen_schedule(config, schedule_config)
    return Objective(
        schedule,
        loss=LossRecipe(
            kind=options.loss.name,
            preservation=options.preservation.name,
            preservation_weight=options.preservation_weight,
            by_area=options.reduction is Reduction.by_weight,
        ),
        weights=_weights(options, schedule, schedule_config),
        thresholds=HUBER_SCHEDULES[options.huber_schedule.name](
            options.huber_c, schedule.snr.values
        ),
        timesteps=TimestepSampler(
            low=options.min_timestep,
            high=options.max_timestep,
            density=options.timestep_sampling.name,
            spread=options.timestep_spread.name,
            mean=options.logit_normal_mean,
            std=options.logit_normal_std,
        ),
        noise=NoiseRecipe(
            offset=options.noise_offset,
            random_offset=options.noise_offset_random,
            adaptive_offset=options.noise_offset_adaptive,
            multires_iterations=options.multires_iterations,
            multires_discount=options.multires_discount,
            as_sd_scripts=options.noise_rule is NoiseRule.sd_scripts,
        ),
        perturbation=InputPerturbation(
            gamma=options.input_perturbation,
            random_gamma=options.input_perturbation_random,
            as_sd_scripts=options.noise_rule is NoiseRule.sd_scripts,
        ),
    )


def build_schedule(config: RunConfig, schedule_config: Mapping[str, Any]) -> NoiseSchedule:
    """Return the base's own schedule, as the run changes it."""
    chosen = config.model.prediction_type
    return NoiseSchedule.from_config(
        chosen_schedule(config, schedule_config),
        prediction_type=chosen.name if chosen is not None else None,
        zero_terminal_snr=config.objective.zero_terminal_snr or None,
        dtype=_table_dtype(config.objective),
    )


def sampling_config(
    config: RunConfig, schedule: NoiseSchedule, own: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the scheduler's config that previews of this training are drawn with."""
    chosen = {**chosen_schedule(config, own), "prediction_type": schedule.prediction_type}
    if schedule.snr.values[-1] > 0:
        return chosen
    # A sampler that does not begin at the last timestep never sees the pure noise trained on.
    # Lin et al., 2024, section 3.3, https://arxiv.org/abs/2305.08891.
    return {**chosen, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def _table_dtype(options: ObjectiveRecord) -> torch.dtype:
    is_single = options.schedule_precision is SchedulePrecision.single
    return torch.float32 if is_single else torch.float64


def _weights(
    options: ObjectiveRecord, schedule: NoiseSchedule, schedule_config: Mapping[str, Any]
) -> Tensor:
    """Return the weight of every timestep."""
    strength = {
        Weighting.min_snr: options.min_snr_gamma,
        Weighting.soft_min_snr: options.min_snr_gamma,
        Weighting.p2: options.p2_gamma,
        Weighting.v_like: options.v_like_scale,
    }.get(options.weighting, 0.0)
    kind, prediction_type = options.weighting.name, schedule.prediction_type
    if options.weight_rule is WeightRule.exact:
        snr = schedule.snr.values
        return loss_weights(kind, snr, prediction_type=prediction_type, strength=strength)
    original = NoiseSchedule.from_config(
        schedule_config,
        prediction_type=prediction_type,
        zero_terminal_snr=False,
        dtype=_table_dtype(options),
    )
    snr = original.snr.values
    return sd_scripts_weights(kind, snr, prediction_type=prediction_type, strength=strength)
