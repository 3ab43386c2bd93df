"""Options of the model -> what the model room takes, and whether they fit the base and machine."""

from __future__ import annotations

import os

import torch

from loralab.config.choices import MicroConditioning, WeightDtype
from loralab.config.records import RunConfig
from loralab.errors import ConfigError, Problem
from loralab.models.attention import attention_problem
from loralab.models.family import ModelFacts
from loralab.models.mixing import mixing_problem
from loralab.models.source import ModelPlace

DTYPES = {
    WeightDtype.fp32: torch.float32,
    WeightDtype.bf16: torch.bfloat16,
    WeightDtype.fp16: torch.float16,
}
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def model_place(config: RunConfig) -> ModelPlace:
    """Return where the base and its VAE are."""
    model = config.model
    return ModelPlace(model.path, config_path=model.config_path, vae_path=model.vae_path)


def fixed_sizes(config: RunConfig) -> tuple[int, ...] | None:
    """Return the sizes of a whole square picture, when all pictures shall pass for one."""
    if config.model.micro_conditioning is MicroConditioning.real:
        return None
    side = config.model.native_resolution
    return side, side, 0, 0, side, side


def training_device(config: RunConfig) -> torch.device:
    """Return where this process trains, so that weights are read straight to it."""
    on_cpu = config.trainer.get("accelerator", "auto") == "cpu" or not torch.cuda.is_available()
    return torch.device("cpu" if on_cpu else f"cuda:{os.environ.get('LOCAL_RANK', '0')}")


def check_model(config: RunConfig, facts: ModelFacts | None) -> None:
    """Compare the options of the model with the base and the machine.

    Raises:
        ConfigError: Every option that does not fit.
    """
    model, problems = config.model, []
    stored, device = DTYPES[model.weight_dtype], training_device(config)
    precision = str(config.trainer.get("precision"))
    autocast = AUTOCAST.get(precision)
    if problem := attention_problem(model.attention.name, dtype=autocast or stored, device=device):
        problems.append(problem)
    if autocast is not None and (
        problem := mixing_problem(stored, autocast, precision=precision, device=device)
    ):
        problems.append(problem)
    if facts is not None and not 1 <= (model.clip_skip or 1) <= facts.num_text_layers:
        text = (
            f"model.clip_skip is {model.clip_skip}; this text encoder has {facts.num_text_layers} "
            f"layers, so it must be between 1 and {facts.num_text_layers}."
        )
        problems.append(Problem("model.clip_skip", text))
    if facts is not None and model.prediction_type is None and not facts.says_prediction_type:
        text = (
            f"model.prediction_type is null, and {model.path} does not say what the UNet predicts; "
            "set v_prediction for a model of 768 px, epsilon for one of 512 px."
        )
        problems.append(Problem("model.prediction_type", text))
    if problems:
        raise ConfigError(*problems)
