"""What an adapter file says of itself: the fields of sd-scripts and modelspec, and its recipe.

Values are text: None is "None" and a flag is "True", as sd-scripts writes them. Fields that are
lists or tables are JSON.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralab import __version__
from loralab.app.data_metadata import data_fields
from loralab.app.folders import read_state
from loralab.config.choices import MetadataAmount
from loralab.config.parse import to_yaml
from loralab.config.records import RunConfig
from loralab.data.account import OrderReceipt

if TYPE_CHECKING:
    from loralab.app.preflight import Survey

MINIMUM = ("ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim",
           "ss_network_alpha", "ss_network_args")  # fmt: skip
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "lightning")
VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
ARCHITECTURES = {
    "sd1": "stable-diffusion-v1/lora",
    "sd2": "stable-diffusion-v2-512/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
}
_SGM_CODE = "https://github.com/Stability-AI/generative-models"


@dataclass(frozen=True)
class Facts:
    """What of a run is not in its configuration.

    Attributes:
        survey: None when the images are not looked at; what depends on them is left out then.
        receipts: Of the order in which images were handed out, one an epoch.
        prediction_type: As diffusers spells it.
        title: Name of the file without its suffix.
        step: Optimizer steps done.
        thumbnail: Data URL of a picture, if there is one.
        epoch: Epochs done, the one under way included.
    """

    config: RunConfig
    survey: Survey | None
    receipts: Sequence[OrderReceipt]
    folder: Path
    prediction_type: str
    title: str
    step: int
    thumbnail: str = ""

    @property
    def epoch(self) -> int | None:
        steps = self.counts.get("steps_per_epoch")
        return None if steps is None else -(-self.step // steps)

    @property
    def counts(self) -> Mapping[str, int]:
        """Images, held-out images and steps an epoch; empty of a run that did not note them."""
        if self.survey is not None:
            return image_counts(self.survey)
        counts: dict[str, int] = read_state(self.folder).get("counts", {})
        return counts

    @property
    def family(self) -> str:
        return self.config.model.family.name

    @property
    def data_digest(self) -> str:
        if self.survey is not None:
            return self.survey.data_digest
        return str(read_state(self.folder).get("data_digest", ""))

    @property
    def is_v(self) -> bool:
        return self.prediction_type == "v_prediction"


def image_counts(survey: Survey) -> dict[str, int]:
    """Return what `run.json` notes of a run's images."""
    trained_on = {i.record.path for i in survey.items if not i.source.is_prior}
    return {
        "images": len(trained_on),
        "held_out": len(survey.validation_items),
        "steps_per_epoch": survey.steps_per_epoch,
    }


def session_id(folder: Path) -> str:
    """Return the number that all files of a run share, also after its folder was moved."""
    place = hashlib.sha256(str(folder.resolve()).encode()).digest()
    return str(read_state(folder).get("session") or int.from_bytes(place[:4], "big"))


def file_metadata(facts: Facts) -> dict[str, str]:
    """Return the metadata of a file, as much of it as the configuration asks for."""
    amount = facts.config.export.metadata
    if amount is MetadataAmount.none:
        return {}
    fields = {**_model(facts), **_network(facts)}
    modelspec = {f"modelspec.{key}": str(value) for key, value in _modelspec(facts).items()}
    if amount is MetadataAmount.minimal:
        return {key: str(value) for key, value in fields.items() if key in MINIMUM} | modelspec
    fields |= {**_run(facts), **_objective(facts)}
    if facts.survey is not None:
        fields |= {**_optimization(facts, facts.survey), **data_fields(facts.config, facts.survey)}
    return {key: str(value) for key, value in fields.items()} | modelspec | _recipe(facts)


def _run(facts: Facts) -> dict[str, Any]:
    started = str(read_state(facts.folder).get("started", ""))
    try:
        seconds = time.mktime(time.strptime(started[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        seconds = time.time()
    return {
        "ss_session_id": session_id(facts.folder),
        "ss_training_started_at": seconds,
        "ss_training_finished_at": time.time(),
        "ss_output_name": facts.title,
        "ss_training_comment": facts.config.export.comment,
        "ss_sd_scripts_commit_hash": "(unknown)",
        "ss_seed": facts.config.seed,
        "ss_steps": facts.step,
        **({} if facts.epoch is None else {"ss_epoch": facts.epoch}),
    }


def _optimization(facts: Facts, survey: Survey) -> dict[str, Any]:
    config, trainer, parts = facts.config, facts.config.trainer, survey.parts
    rates = {name: plan.learning_rate for name, plan in parts.items()}
    target = str(config.optimizer.get("_target_", ""))
    arguments = ",".join(
        f"{key}={value}" for key, value in config.optimizer.items() if not key.startswith("_")
    )
    precision = str(trainer.get("precision", "32-true"))
    return {
        "ss_learning_rate": config.optimizer.get("lr"),
        "ss_unet_lr": rates.get("unet"),
        "ss_text_encoder_lr": rates.get("text_encoder"),
        "ss_optimizer": f"{target}({arguments})",
        "ss_lr_scheduler": config.scheduler.kind.name,
        "ss_lr_warmup_steps": survey.warmup_steps,
        "ss_max_train_steps": survey.total_steps,
        "ss_num_epochs": -(-survey.total_steps // survey.steps_per_epoch),
        "ss_gradient_checkpointing": config.model.gradient_checkpointing,
        "ss_gradient_accumulation_steps": trainer.get("accumulate_grad_batches", 1),
        "ss_max_grad_norm": trainer.get("gradient_clip_val"),
        "ss_mixed_precision": {"bf16-mixed": "bf16", "16-mixed": "fp16"}.get(precision, "no"),
        "ss_full_fp16": precision == "16-true",
        "ss_lowram": False,
    }


def _network(facts: Facts) -> dict[str, Any]:
    adapter = facts.config.adapter
    kind = adapter.kind.name
    module = "networks.lora" if kind == "lora" else "lycoris.kohya"
    arguments: dict[str, Any] = {}
    if kind != "lora":
        algorithm = {"dora": "lora", "tucker": "lora", "oft": "diag-oft"}.get(kind, kind)
        arguments |= {"algo": algorithm, "dora_wd": kind == "dora", "use_tucker": kind == "tucker"}
    if adapter.conv_rank is not None:
        alpha = adapter.conv_alpha or adapter.alpha * adapter.conv_rank / adapter.rank
        arguments |= {"conv_dim": adapter.conv_rank, "conv_alpha": alpha}
    if adapter.lora_plus_ratio != 1:
        arguments["loraplus_lr_ratio"] = adapter.lora_plus_ratio
    for name in ("rank_dropout", "module_dropout"):
        if getattr(adapter, name):
            arguments[name] = getattr(adapter, name)
    fields = {
        "ss_network_module": module,
        "ss_network_dim": adapter.rank,
        "ss_network_alpha": adapter.alpha,
        "ss_network_dropout": adapter.dropout or None,
        "ss_scale_weight_norms": (
            adapter.weight_norm.max if adapter.weight_norm.type.name == "frobenius" else None
        ),
    }
    if arguments:
        fields["ss_network_args"] = json.dumps({k: str(v) for k, v in arguments.items()})
    return fields


def _model(facts: Facts) -> dict[str, Any]:
    model = facts.config.model
    path = Path(model.path)
    name = VERSIONS[facts.family] + ("_v" if facts.is_v and facts.family != "sdxl" else "")
    return {
        "ss_v2": facts.family == "sd2",
        "ss_base_model_version": name,
        "ss_sd_model_name": path.name,
        **_base_hashes(path),
        "ss_clip_skip": model.clip_skip,
        "ss_max_token_length": model.max_tokens if model.max_tokens > 75 else None,
        **_vae_fields(model.vae_path),
    }


def _base_hashes(path: Path) -> dict[str, str]:
    legacy, whole = _file_hashes(path)
    return {"ss_sd_model_hash": legacy, "ss_new_sd_model_hash": whole}


def _vae_fields(path: str | None) -> dict[str, str]:
    """Return what is said of a VAE that is not the base's own."""
    if path is None:
        return {}
    legacy, whole = _file_hashes(Path(path))
    return {"ss_vae_name": Path(path).name, "ss_vae_hash": legacy, "ss_new_vae_hash": whole}


def _file_hashes(path: Path) -> tuple[str, str]:
    """Return the short and the whole hash of a file; of a folder sd-scripts writes a word."""
    if not path.is_file():
        return "IsADirectory", "IsADirectory"
    with path.open("rb") as file:
        file.seek(0x100000)
        legacy = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
        file.seek(0)
        return legacy, hashlib.file_digest(file, "sha256").hexdigest()


def _objective(facts: Facts) -> dict[str, Any]:
    objective, prior = facts.config.objective, facts.config.data.prior
    weighting = objective.weighting.name
    return {
        "ss_noise_offset": objective.noise_offset or None,
        "ss_noise_offset_random_strength": objective.noise_offset_random,
        "ss_adaptive_noise_scale": objective.noise_offset_adaptive or None,
        "ss_multires_noise_iterations": objective.multires_iterations or None,
        "ss_multires_noise_discount": objective.multires_discount,
        "ss_ip_noise_gamma": objective.input_perturbation or None,
        "ss_ip_noise_gamma_random_strength": objective.input_perturbation_random,
        "ss_zero_terminal_snr": objective.zero_terminal_snr,
        "ss_min_snr_gamma": objective.min_snr_gamma if weighting == "min_snr" else None,
        "ss_debiased_estimation": weighting == "debiased",
        "ss_loss_type": objective.loss.name,
        "ss_huber_schedule": objective.huber_schedule.name,
        "ss_huber_c": objective.huber_c,
        "ss_prior_loss_weight": prior.weight,
    }


def _modelspec(facts: Facts) -> Mapping[str, Any]:
    config, family, words = facts.config, facts.family, facts.config.export.modelspec
    architecture = ARCHITECTURES[family]
    if family == "sd2" and facts.is_v:
        architecture = "stable-diffusion-v2-768-v/lora"
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "implementation": _SGM_CODE if family == "sdxl" else "diffusers",
        "implementation_version": f"loralab/{__version__}",
        "title": words.title or facts.title,
        "author": words.author,
        "license": words.license,
        "tags": ", ".join(words.tags),
        "trigger_phrase": words.trigger_phrase,
        "usage_hint": words.usage_hint,
        "description": words.description or config.export.comment,
        "thumbnail": facts.thumbnail,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "resolution": f"{config.data.resolution}x{config.data.resolution}",
        "prediction_type": "v" if facts.is_v else "epsilon",
        "encoder_layer": config.model.clip_skip,
    }
    low, high = config.objective.min_timestep, config.objective.max_timestep
    if (low, high) != (0, 1000):
        fields["timestep_range"] = f"{low},{high}"
    return {key: value for key, value in fields.items() if value not in (None, "")}


def _recipe(facts: Facts) -> dict[str, str]:
    """Return what it takes to train the file again."""
    versions = {name: version(name) for name in _LIBRARIES}
    return {
        "loralab.version": __version__,
        "loralab.versions": json.dumps(versions | {"python": platform.python_version()}),
        "loralab.data_digest": facts.data_digest,
        "loralab.order_receipts": json.dumps([vars(r) for r in facts.receipts]),
        "loralab.config": to_yaml(facts.config),
    }
