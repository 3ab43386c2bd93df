"""Settings of the adapter -> the plan of every part, checked without weights; and the reverse."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from loralab.adapters.blocks import Blocks, block_rates
from loralab.adapters.export import parse_adapter
from loralab.adapters.fit import Fitted, load_weights, plan_problems
from loralab.adapters.inject import block_sizes, inject, layer_sizes, parameter_shapes
from loralab.adapters.plan import LayerPlan, plan_layers
from loralab.adapters.spec import AdapterSpec, Overrides
from loralab.adapters.targets import match_targets
from loralab.config.adapter_records import AdaptedPartRecord
from loralab.config.adapter_rules import pattern_values
from loralab.config.choices import AdapterDtype, DropoutPlace
from loralab.config.records import RunConfig
from loralab.config.rules import adapted_parts
from loralab.errors import AdapterError, Collector, ConfigError, Problem, UserError
from loralab.models.components import skeletons
from loralab.models.family import FamilySpec, ModelFamily
from loralab.training.param_groups import RateRules

DTYPES = {AdapterDtype.fp32: torch.float32, AdapterDtype.bf16: torch.bfloat16}


@dataclass(frozen=True)
class PartPlan:
    """One adapted part: its adapter, its size, its rates.

    Attributes:
        spec: What is asked for.
        layers: What every module gets.
        num_parameters: Trainable ones.
        learning_rate: Peak rate.
        lora_plus_ratio: Multiple of the rate for the second matrix.
        freeze_after_steps: Optimizer steps after which the part is trained no more.
        lr_scales: Multiple of the rate by module, where it is not 1.
        weight_decay: Of this part; None leaves it to the optimizer.
        decays_vectors: Weight decay holds for vectors too.
        shapes: Name and shape of every parameter by module.
        block_sizes: Of the rotations of OFT and BOFT, which need not be the rank.
    """

    spec: AdapterSpec
    layers: Mapping[str, LayerPlan]
    num_parameters: int
    learning_rate: float
    lora_plus_ratio: float = 1.0
    freeze_after_steps: int | None = None
    lr_scales: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float | None = None
    decays_vectors: bool = True
    shapes: Mapping[str, Sequence[tuple[str, tuple[int, ...]]]] = field(default_factory=dict)
    block_sizes: tuple[int, ...] = ()

    @property
    def rate_rules(self) -> RateRules:
        """What changes the rate and the decay inside the part."""
        return RateRules(
            self.lora_plus_ratio, self.lr_scales, self.weight_decay, self.decays_vectors
        )

    @property
    def num_modules(self) -> int:
        return len(self.layers)

    def describe(self) -> str:
        """Return modules, parameters, ranks and rates in one line."""
        pairs = Counter((plan.rank, plan.alpha) for plan in self.layers.values())
        (rank, alpha), _ = pairs.most_common(1)[0]
        size = f"rank {rank}, alpha {alpha:g}"
        if self.block_sizes:
            size = f"blocks of {' or '.join(map(str, self.block_sizes))} for rank {rank}"
        others = f" ({len(pairs) - 1} other pairs)" if len(pairs) > 1 else ""
        text = (
            f"{self.spec.kind}, {self.num_parameters:,} trainable parameters in "
            f"{self.num_modules} layers, {size}{others}, "
            f"rate {self.learning_rate:g}"
        )
        scales = sorted({plan.lr_scale for plan in self.layers.values()})
        if scales != [1.0]:
            text += f" × {scales[0]:g} to {scales[-1]:g}"
        if self.lora_plus_ratio != 1:
            text += f", second matrix × {self.lora_plus_ratio:g}"
        if self.weight_decay is not None:
            text += f", decay {self.weight_decay:g}"
        if not self.decays_vectors:
            text += ", no decay of vectors"
        if self.freeze_after_steps:
            text += f", frozen after step {self.freeze_after_steps}"
        return text


def part_plans(config: RunConfig, family: FamilySpec) -> dict[str, PartPlan]:
    """Return the plan of every part that gets an adapter.

    Raises:
        ConfigError: Targets, patterns, blocks or the file to start from do not fit; all problems.
    """
    networks = skeletons(config.model.path, family)
    problems: list[Problem] = []
    collect = Collector(problems)
    stored = collect(_stored, config, networks) if config.adapter.init_from else None
    plans: dict[str, PartPlan] = {}
    for name, part in adapted_networks(config, family).items():
        try:
            plans[name] = _part_plan(config, family, networks[name], name, part, stored)
        except UserError as error:
            presets = ", ".join(family.targets[name])
            problems += [
                Problem(p.key, f"{p.message.rstrip('.')}; presets: {presets}.")
                if p.key.endswith(".targets")
                else p
                for p in error.problems
            ]
    if stored is not None and not problems:
        layers = {name: plan.layers for name, plan in plans.items()}
        source, kind = str(config.adapter.init_from), config.adapter.kind.name
        advice = _advice(config, family, networks, stored)
        problems += plan_problems(stored, layers, kind=kind, source=source, advice=advice)
    if problems:
        raise ConfigError(*problems)
    return plans


def adapted_networks(config: RunConfig, family: FamilySpec) -> dict[str, AdaptedPartRecord]:
    """Return what gets an adapter; one setting holds for all of a family's text encoders."""
    settings = adapted_parts(config)
    return {
        part: settings[setting]
        for setting, parts in (("unet", ("unet",)), ("text_encoder", family.text_parts))
        for part in parts
        if setting in settings
    }


def inject_adapters(config: RunConfig, plans: Mapping[str, PartPlan], family: ModelFamily) -> None:
    """Put the adapters on a loaded model, seeded by the run, and start them from a file if asked.

    Raises:
        AdapterError: The file does not fit.
    """
    for number, (name, part) in enumerate(plans.items()):
        torch.manual_seed((config.seed * 1000 + number) % 2**63)
        dtype = DTYPES[config.adapter.weight_dtype]
        inject(family.parts[name], part.spec, part=name, dtype=dtype)
    if config.adapter.init_from:
        parts = {name: family.parts[name] for name in plans}
        stored = _stored(config, parts)
        load_weights(stored, parts, source=config.adapter.init_from)


def _stored(config: RunConfig, networks: Mapping[str, nn.Module]) -> Fitted:
    """Return the file to start from, on the parts of the model.

    Raises:
        AdapterError: It cannot be read or does not belong on this model.
    """
    path = Path(str(config.adapter.init_from))
    if not path.exists():
        text = f"adapter.init_from is {path}, which does not exist; name an adapter file."
        raise AdapterError(Problem("adapter.init_from", text))
    return parse_adapter(path, networks)


def _advice(
    config: RunConfig, family: FamilySpec, networks: Mapping[str, nn.Module], stored: Fitted
) -> str:
    """Return what to do: the settings with which a run adapts what the file does."""
    settings: dict[str, str] = {}
    for key, parts in (("adapter.unet", ("unet",)), ("adapter.text_encoder", family.text_parts)):
        found = {name: set(stored[name]) for name in parts if stored[name]}
        if not found:
            settings[f"{key}.enabled"] = "false"
            continue
        for preset, targets in family.targets[parts[0]].items():
            matched = {n: set(chain(*match_targets(networks[n], targets).values())) for n in found}
            if matched == found:
                settings.setdefault(f"{key}.targets", f"[{preset}]")
    pairs = {(w.rank, w.alpha) for weights in stored.values() for w in weights.values()}
    if len(pairs) == 1:
        ((rank, alpha),) = pairs
        settings |= {"adapter.rank": str(rank), "adapter.alpha": f"{alpha:g}"}
    else:
        settings["adapter.rank_from_file"] = "true"
    text = " ".join(f"{key}={value}" for key, value in settings.items())
    return f"start with the settings of the file: {text}"


def _part_plan(
    config: RunConfig,
    family: FamilySpec,
    network: nn.Module,
    name: str,
    part: AdaptedPartRecord,
    stored: Fitted | None,
) -> PartPlan:
    adapter = config.adapter
    spec = _spec(config, family, name, part)
    if adapter.rank_from_file and stored is not None:
        own = plan_layers(network, dataclasses.replace(spec, overrides=Overrides()), part=name)
        found = {path: weights for path, weights in stored[name].items() if path in own}
        found = {path: weights for path, weights in found.items() if weights.rank}
        overrides = Overrides(
            rank={f"^{path.replace('.', '[.]')}$": w.rank or 0 for path, w in found.items()},
            alpha={f"^{path.replace('.', '[.]')}$": w.alpha for path, w in found.items()},
            lr_scale=spec.overrides.lr_scale,
        )
        spec = dataclasses.replace(spec, overrides=overrides, rank_stabilized=False)
    layers = plan_layers(network, spec, part=name)
    ratio = adapter.lora_plus_ratio if part.lora_plus_ratio is None else part.lora_plus_ratio
    shared = config.optimizer.get("lr")
    shared = 1.0 if shared is None else shared  # the optimizer has a rate of its own
    rate = part.lr if part.lr is not None else part.lr_scale * shared
    return PartPlan(
        spec,
        layers,
        sum(layer_sizes(network, spec, layers).values()),
        rate,
        ratio,
        part.freeze_after_steps,
        {path: plan.lr_scale for path, plan in layers.items() if plan.lr_scale != 1},
        part.weight_decay,
        adapter.decay_vectors,
        parameter_shapes(network, spec, layers),
        block_sizes(network, spec, layers),
    )


def _spec(config: RunConfig, family: FamilySpec, name: str, part: AdaptedPartRecord) -> AdapterSpec:
    adapter, presets = config.adapter, family.targets[name]
    targets = [t for target in part.targets for t in presets.get(target, (target,))]
    rank = adapter.rank if part.rank is None else part.rank
    is_inner = adapter.dropout_place is DropoutPlace.inner
    return AdapterSpec(
        kind=adapter.kind.name,
        rank=rank,
        alpha=adapter.alpha * rank / adapter.rank if part.alpha is None else part.alpha,
        dropout=0.0 if is_inner else adapter.dropout,
        targets=tuple(dict.fromkeys(targets)),
        conv_rank=adapter.conv_rank,
        conv_alpha=adapter.conv_alpha,
        rank_stabilized=adapter.rank_stabilized,
        inner_dropout=adapter.dropout if is_inner else 0.0,
        rank_dropout=adapter.rank_dropout,
        module_dropout=adapter.module_dropout,
        overrides=Overrides(
            {name: int(rank) for name, rank in pattern_values(part.rank_by_pattern).items()},
            pattern_values(part.alpha_by_pattern),
            pattern_values(part.lr_scale_by_pattern),
        ),
        blocks=_blocks(config, family) if name == "unet" else None,
        options={
            "decompose_both": adapter.decompose_both,
            "decompose_factor": adapter.decompose_factor,
            "constraint": adapter.constraint,
        },
    )


def _blocks(config: RunConfig, family: FamilySpec) -> Blocks:
    blocks, layout = config.adapter.blocks, "sdxl" if len(family.text_parts) > 1 else "sd"
    return Blocks(
        layout,
        tuple(blocks.ranks),
        tuple(blocks.alphas),
        tuple(blocks.conv_ranks),
        tuple(blocks.conv_alphas),
        block_rates(
            blocks.down_lr_scales,
            blocks.mid_lr_scales,
            blocks.up_lr_scales,
            layout=layout,
            threshold=blocks.lr_zero_threshold,
        ),
    )
