"""Rules of the objective. What depends on the prediction type may wait for the base's own files."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from loralab.config.choices import Masks, Preservation, TimestepSpread, Weighting
from loralab.config.records import RunConfig
from loralab.config.training_records import ObjectiveRecord
from loralab.errors import Problem

# Option -> the one that decides whether it is read, and the choices that read it.
READERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "huber_c": ("loss", ("huber", "smooth_l1")),
    "huber_schedule": ("loss", ("huber", "smooth_l1")),
    "min_snr_gamma": ("weighting", ("min_snr", "soft_min_snr")),
    "p2_gamma": ("weighting", ("p2",)),
    "v_like_scale": ("weighting", ("v_like",)),
    "logit_normal_mean": ("timestep_sampling", ("logit_normal",)),
    "logit_normal_std": ("timestep_sampling", ("logit_normal",)),
    "preservation_weight": ("preservation", ("output", "outside_mask")),
}


def prediction_problems(config: RunConfig, prediction_type: str) -> Iterator[Problem]:
    """Yield what does not go with a prediction type, be it chosen or found in the base's files."""
    objective = config.objective
    if objective.zero_terminal_snr and prediction_type in ("epsilon", "flow_prediction"):
        why = {
            "epsilon": "noise cannot be told from nothing at its last timestep; set "
            "model.prediction_type=v_prediction if the base was made so, or",
            "flow_prediction": "a flow ends in pure noise already;",
        }[prediction_type]
        yield Problem(
            "objective.zero_terminal_snr",
            f"objective.zero_terminal_snr is true, but the base predicts {prediction_type}: {why} "
            "set objective.zero_terminal_snr=false.",
        )
    needed = {Weighting.scale_v_like_noise: "v_prediction", Weighting.v_like: "epsilon"}
    wanted = needed.get(objective.weighting, prediction_type)
    if prediction_type != wanted:
        yield Problem(
            "objective.weighting",
            f"objective.weighting is {objective.weighting.name}, which is for a base that predicts "
            f"{wanted}, but this one predicts {prediction_type}; use min_snr or constant.",
        )
    if prediction_type == "flow_prediction" and config.preview.prompts:
        yield Problem(
            "preview.prompts",
            "preview.prompts is not empty, but the base predicts flow_prediction, which previews "
            "cannot be drawn with; set preview=none.",
        )


def _prediction_type_fits(config: RunConfig) -> Iterator[Problem]:
    if config.model.prediction_type is not None:
        yield from prediction_problems(config, config.model.prediction_type.name)


def _timesteps_are_a_range(config: RunConfig) -> Iterator[Problem]:
    low, high = config.objective.min_timestep, config.objective.max_timestep
    if low >= high:
        yield Problem(
            "objective.min_timestep",
            f"objective.min_timestep is {low}; it must be below objective.max_timestep ({high}).",
        )


def _timesteps_have_a_window(config: RunConfig) -> Iterator[Problem]:
    spread, trainer = config.objective.timestep_spread, config.trainer
    sizes = (config.data.batch_size, trainer.get("accumulate_grad_batches", 1))
    if spread is not TimestepSpread.independent and sizes == (1, 1) and trainer.get("devices") == 1:
        yield Problem(
            "objective.timestep_spread",
            f"objective.timestep_spread is {spread.name}, but a step sees one image; raise "
            "data.batch_size or trainer.accumulate_grad_batches, or use independent.",
        )


def _options_are_read(config: RunConfig) -> Iterator[Problem]:
    """Refuse what was set for another loss, weighting, density or preservation than the chosen."""
    objective, neutral = config.objective, ObjectiveRecord()
    for name, (decider, readers) in READERS.items():
        value, chosen = getattr(objective, name), getattr(objective, decider).name
        if chosen not in readers and value != getattr(neutral, name):
            key, found = f"objective.{name}", getattr(value, "name", value)
            yield Problem(
                key,
                f"{key} is {found}, which objective.{decider} {chosen} does not read; leave it "
                f"out, or set objective.{decider}={' or '.join(readers)}.",
            )
    if not objective.multires_iterations and (
        objective.multires_discount != neutral.multires_discount
    ):
        yield Problem(
            "objective.multires_discount",
            f"objective.multires_discount is {objective.multires_discount:g}, but "
            "objective.multires_iterations is 0; set it above 0, or leave the discount out.",
        )


def _noise_options_have_an_effect(config: RunConfig) -> Iterator[Problem]:
    objective = config.objective
    for base, dependants in (
        ("noise_offset", ("noise_offset_random", "noise_offset_adaptive")),
        ("input_perturbation", ("input_perturbation_random",)),
    ):
        for name in dependants:
            value = getattr(objective, name)
            if value and not getattr(objective, base):
                key = f"objective.{name}"
                yield Problem(
                    key,
                    f"{key} is {str(value).lower()}, but objective.{base} is 0; set it above 0, "
                    f"or set {key}={'false' if value is True else 0}.",
                )


def _preservation_has_an_outside(config: RunConfig) -> Iterator[Problem]:
    preservation = config.objective.preservation
    if preservation is Preservation.outside_mask and config.data.masks is Masks.none:
        yield Problem(
            "objective.preservation",
            "objective.preservation is outside_mask, but data.masks is none, so nothing is "
            "outside; set data.masks, or use objective.preservation=output.",
        )


OBJECTIVE_RULES: tuple[Callable[[RunConfig], Iterator[Problem]], ...] = (
    _prediction_type_fits,
    _timesteps_are_a_range,
    _timesteps_have_a_window,
    _noise_options_have_an_effect,
    _options_are_read,
    _preservation_has_an_outside,
)
