"""Configuration of the adapter and of its files."""

from __future__ import annotations

from dataclasses import dataclass

from loralab.config.choices import (
    AdapterDtype,
    AdapterKind,
    Container,
    DropoutPlace,
    FilePrecision,
    Layout,
    MetadataAmount,
    NameCollision,
    WeightNorm,
)
from loralab.config.option import option


@dataclass(kw_only=True)
class AdaptedPartRecord:
    """Which layers of one part get an adapter, and at what learning rate."""

    enabled: bool = option(False, "Attach adapters to this part.")
    targets: list[str] = option(
        list, "Presets (attention, attention_mlp, sd_scripts, full), module names or patterns."
    )
    lr: float | None = option(None, "Learning rate of this part; null uses lr_scale.", low=0.0)
    lr_scale: float = option(1.0, "Learning rate as a multiple of optimizer.lr.", low=0.0)
    rank: int | None = option(None, "Rank in this part; null is adapter.rank.", low=1)
    alpha: float | None = option(
        None, "Alpha in this part; null keeps the scale alpha / rank of adapter.", low=1e-6
    )
    lora_plus_ratio: float | None = option(
        None, "Of this part; null is adapter.lora_plus_ratio.", low=1e-3
    )
    weight_decay: float | None = option(
        None, "Weight decay of this part; null is optimizer.weight_decay.", low=0.0
    )
    freeze_after_steps: int | None = option(
        None, "Steps after which this part is trained no more; null never.", low=1
    )
    rank_by_pattern: list[str] = option(
        list, "Rank of the modules of a name or pattern, like [to_q:8]; the last match wins."
    )
    alpha_by_pattern: list[str] = option(
        list, "Alpha of the modules of a name or pattern; without one the scale stays."
    )
    lr_scale_by_pattern: list[str] = option(
        list, "Learning rate of the modules of a name or pattern, as a multiple of the part's."
    )


@dataclass(kw_only=True)
class BlockRecord:
    """The UNet block by block: 25 blocks of SD1 and SD2, 23 of SDXL, as sd-scripts counts them."""

    ranks: list[int] = option(list, "Rank of each block; 0 adapts nothing there. Empty is off.")
    alphas: list[float] = option(list, "Alpha of each block; empty keeps the scale.")
    conv_ranks: list[int] = option(list, "Rank of each block's convolutions beyond 1x1.")
    conv_alphas: list[float] = option(list, "Alpha of these convolutions.")
    down_lr_scales: list[str] = option(
        list, "Rate of each down block as a multiple of the UNet's, or one curve like sine+0.25."
    )
    mid_lr_scales: list[str] = option(list, "The same for the middle block or blocks.")
    up_lr_scales: list[str] = option(list, "The same for the up blocks.")
    lr_zero_threshold: float = option(
        0.0, "Blocks whose multiple is not above this get no adapter.", low=0.0
    )


@dataclass(kw_only=True)
class WeightNormRecord:
    """A limit on the size of each module's update, kept after every step."""

    type: WeightNorm = option(WeightNorm.none, "Norm of the update.")
    max: float = option(1.0, "Largest norm; larger updates are scaled down to it.", low=1e-6)


@dataclass(kw_only=True)
class AdapterRecord:
    """The adapter: small matrices beside the frozen layers."""

    kind: AdapterKind = option(AdapterKind.lora, "Kind of adapter.")
    rank: int = option(
        4, "Rank of a layer's matrices; size to aim at for the blocks of oft and boft.", low=1
    )
    alpha: float = option(
        4.0, "The adapter's output is scaled by alpha / rank; oft and boft have no scale.", low=1e-6
    )
    conv_rank: int | None = option(
        None, "Rank of convolutions beyond 1x1 among the targets; null is rank.", low=1
    )
    conv_alpha: float | None = option(
        None, "Alpha of these convolutions; null keeps the scale alpha / rank.", low=1e-6
    )
    weight_dtype: AdapterDtype = option(
        AdapterDtype.fp32,
        "Storage of the weights in training; bf16 takes half the memory, and its updates are "
        "rounded by chance, so that none is lost on the average.",
    )
    rank_stabilized: bool = option(False, "Scale by alpha / sqrt(rank): rsLoRA.")
    dropout: float = option(
        0.0, "Dropout inside the adapter, at dropout_place.", low=0.0, high=0.999
    )
    dropout_place: DropoutPlace = option(
        DropoutPlace.input, "Before the first matrix, or between both as sd-scripts has it."
    )
    rank_dropout: float = option(
        0.0, "Probability of dropping a rank; an output row of other kinds.", low=0.0, high=0.999
    )
    module_dropout: float = option(
        0.0, "Probability of leaving out a layer's adapter.", low=0.0, high=0.999
    )
    decompose_both: bool = option(False, "Of kind lokr: split the first factor as well.")
    decompose_factor: int = option(
        -1, "Of kind lokr: size of the first factor; -1 is near the square root.", low=-1
    )
    constraint: float = option(0.0, "Of kind oft and boft: largest rotation; 0 is any.", low=0.0)
    lora_plus_ratio: float = option(
        1.0, "Learning rate of the second matrix as a multiple: LoRA+.", low=1e-3
    )
    decay_vectors: bool = option(
        True, "Let weight decay shrink vectors too, such as the magnitudes of DoRA."
    )
    init_from: str | None = option(
        None, "Adapter file to start from: kohya, LyCORIS, diffusers or PEFT."
    )
    rank_from_file: bool = option(False, "Take each layer's rank and alpha from init_from.")
    weight_norm: WeightNormRecord = option(WeightNormRecord, "Limit on updates.")
    blocks: BlockRecord = option(BlockRecord, "The UNet block by block.")
    unet: AdaptedPartRecord = option(AdaptedPartRecord, "The UNet's adapter.")
    text_encoder: AdaptedPartRecord = option(AdaptedPartRecord, "The text encoder's adapter.")


@dataclass(kw_only=True)
class ModelspecRecord:
    """What the files say to people; empty fields are left out."""

    title: str = option("", "Title; empty is the file's name.", affects_result=False)
    author: str = option("", "Who made it.", affects_result=False)
    license: str = option("", "Licence of the files.", affects_result=False)
    tags: list[str] = option(list, "Words to find it by.", affects_result=False)
    description: str = option("", "What it does; empty is export.comment.", affects_result=False)
    trigger_phrase: str = option("", "What a prompt must say.", affects_result=False)
    usage_hint: str = option("", "How it is used best.", affects_result=False)
    thumbnail: int | None = option(
        None,
        "Longest side in px of the first preview of the file's own step; null keeps none.",
        low=16,
        high=512,
        affects_result=False,
    )


@dataclass(kw_only=True)
class ExportRecord:
    """Adapter files for other programs."""

    layouts: list[Layout] = option(list, "Key namings to write: kohya, diffusers.")
    precision: FilePrecision = option(
        FilePrecision.fp16, "Number format of the files.", affects_result=False
    )
    container: Container = option(
        Container.safetensors, "Container of the files.", affects_result=False
    )
    metadata: MetadataAmount = option(
        MetadataAmount.full, "How much the files tell about their training.", affects_result=False
    )
    comment: str = option("", "Text kept in the files' metadata.", affects_result=False)
    name_template: str = option(
        "{name}",
        "File name; {name}, {run_id}, {comment}, {kind} and {rank} are filled in.",
        affects_result=False,
    )
    on_name_collision: NameCollision = option(
        NameCollision.version,
        "When another run's file has the name: add -v2, stop, or replace it.",
        affects_result=False,
    )
    keep_last: int | None = option(
        None, "Files of steps, and of epochs, to keep; null keeps all.", low=1, affects_result=False
    )
    keep_best: int | None = option(
        None,
        "Also export after each validation, and keep the files of so many best ones.",
        low=1,
        affects_result=False,
    )
    modelspec: ModelspecRecord = option(ModelspecRecord, "What the files say to people.")
    every_n_steps: int | None = option(
        None, "Also export every so many steps.", low=1, affects_result=False
    )
    every_n_epochs: int | None = option(
        None, "Also export every so many epochs.", low=1, affects_result=False
    )
