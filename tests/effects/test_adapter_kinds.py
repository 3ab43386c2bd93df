"""The adapter's kinds and what only some of them know."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import Tiny, TinyRun

UNET_ONLY = "adapter.text_encoder.enabled=false"
FULL = "adapter.unet.targets=[full]"
LR = 0.01

# Kind -> tensors of a linear layer 32 x 32 in its file, at rank 2.
TENSORS = {
    "lora": {"alpha", "lora_down.weight", "lora_up.weight"},
    "dora": {"alpha", "dora_scale", "lora_down.weight", "lora_up.weight"},
    "loha": {"alpha", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    "lokr": {"alpha", "lokr_w1", "lokr_w2_a", "lokr_w2_b"},
    "tucker": {"alpha", "lora_down.weight", "lora_up.weight"},
    "dylora": {"alpha", "lora_down.weight", "lora_up.weight"},
    "oft": {"alpha", "oft_blocks"},
    "boft": {"alpha", "oft_blocks"},
}


@effect("adapter.kind")
@pytest.mark.parametrize("kind", sorted(TENSORS))
def test_every_kind_trains_and_writes_its_own_tensors(tiny: Tiny, kind: str) -> None:
    tensors = tiny.run(f"adapter.kind={kind}", "export.layouts=[kohya]").adapter
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    own = {key.partition(".")[2] for key in tensors if key.startswith(f"{name}.")}
    assert own == TENSORS[kind]


def conv_shapes(run: TinyRun) -> set[tuple[int, ...]]:
    return {
        tuple(tensor.shape)
        for key, tensor in run.adapter.items()
        if "resnets_0_conv1.lora_down" in key
    }


@effect("adapter.conv_rank", "adapter.conv_alpha")
def test_convolutions_have_a_rank_and_an_alpha_of_their_own(tiny: Tiny) -> None:
    run = tiny.run("adapter.conv_rank=3", "adapter.conv_alpha=1.5", FULL, UNET_ONLY)
    assert {shape[0] for shape in conv_shapes(run)} == {3}
    alphas = {key: float(t) for key, t in run.adapter.items() if key.endswith(".alpha")}
    assert alphas["lora_unet_down_blocks_0_resnets_0_conv1.alpha"] == 1.5
    # 1x1 convolutions and linear layers of the same blocks have the ordinary rank.
    assert alphas["lora_unet_down_blocks_0_resnets_0_time_emb_proj.alpha"] == 2.0
    down = run.adapter["lora_unet_down_blocks_1_resnets_0_conv_shortcut.lora_down.weight"]
    assert down.shape[0] == 2


@effect("adapter.conv_rank")
def test_a_rank_of_convolutions_alone_keeps_the_scale(tiny: Tiny) -> None:
    plans = tiny.survey("adapter.conv_rank=4", "adapter.alpha=1", FULL).parts["unet"].layers
    assert {p.alpha / p.rank for p in plans.values()} == {0.5}
    assert plans["down_blocks.0.resnets.0.conv1"].rank == 4


@effect("adapter.rank_stabilized")
def test_rank_stabilized_files_hold_alpha_times_the_root_of_the_rank(tiny: Tiny) -> None:
    run = tiny.run("adapter.rank_stabilized=true", "adapter.rank=4", "adapter.alpha=3")
    alphas = {float(t) for key, t in run.adapter.items() if key.endswith(".alpha")}
    assert alphas == {6.0}  # 3 * sqrt(4): scale 6 / 4 = 3 / sqrt(4)


def first_gradients(tiny: Tiny, *overrides: str, name: str = "lora_B") -> dict[str, Tensor]:
    """Return gradients of the first step; nothing is clipped."""
    built = tiny.build(*overrides, "trainer.max_steps=1", "trainer.gradient_clip_val=null")
    built.fit()
    return {
        f"{part}.{path}": parameter.grad
        for part, module in built.job.module.adapted.items()
        for path, parameter in module.named_parameters()
        if name in path and parameter.grad is not None
    }


@effect("adapter.dropout_place")
def test_dropout_between_the_matrices_is_another_than_before_them(tiny: Tiny) -> None:
    at_input = first_gradients(tiny, "adapter.dropout=0.5")
    inner = first_gradients(tiny, "adapter.dropout=0.5", "adapter.dropout_place=inner")
    assert any(not torch.allclose(inner[name], at_input[name], rtol=0.01) for name in inner)


@effect("adapter.rank_dropout")
def test_rank_dropout_leaves_ranks_without_a_gradient(tiny: Tiny) -> None:
    options = ("adapter.rank=8", "data.batch_size=1", UNET_ONLY)
    dropped = first_gradients(tiny, "adapter.rank_dropout=0.5", *options)
    plain = first_gradients(tiny, *options)
    empty = sum(int((g.flatten(1).abs().sum(0) == 0).sum()) for g in dropped.values())
    assert not sum(int((g.flatten(1).abs().sum(0) == 0).sum()) for g in plain.values())
    assert 0.3 < empty / (8 * len(dropped)) < 0.7


@effect("adapter.module_dropout")
def test_module_dropout_leaves_modules_without_a_gradient(tiny: Tiny) -> None:
    found = first_gradients(tiny, "adapter.module_dropout=0.5", UNET_ONLY)
    silent = sum(float(gradient.abs().max()) == 0 for gradient in found.values())
    assert 0.2 < silent / len(found) < 0.8


@effect("adapter.decompose_factor", "adapter.decompose_both")
def test_lokr_is_cut_as_asked(tiny: Tiny) -> None:
    base = ("adapter.kind=lokr", "adapter.rank=1", UNET_ONLY, "export.layouts=[kohya]")
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    plain = tiny.run(*base).adapter
    assert plain[f"{name}.lokr_w1"].shape == (8, 8)  # 64 = 8 x 8
    factor = tiny.run(*base, "adapter.decompose_factor=4").adapter
    assert factor[f"{name}.lokr_w1"].shape == (4, 4)
    both = tiny.run(*base, "adapter.decompose_both=true").adapter
    assert both[f"{name}.lokr_w1_a"].shape == (8, 1)


@effect("adapter.constraint")
def test_a_constraint_keeps_rotations_small(tiny: Tiny) -> None:
    base = ("adapter.kind=oft", UNET_ONLY, "export.layouts=[kohya]", "optimizer.lr=0.1")
    free, held = tiny.run(*base).adapter, tiny.run(*base, "adapter.constraint=1e-5").adapter
    alphas = {float(t) for key, t in held.items() if key.endswith(".alpha")}
    assert all(alpha == pytest.approx(1e-5) for alpha in alphas)
    assert {float(t) for key, t in free.items() if key.endswith(".alpha")} == {0.0}


@effect("adapter.lora_plus_ratio", "adapter.unet.lora_plus_ratio")
@effect("adapter.text_encoder.lora_plus_ratio")
def test_the_second_matrix_has_a_rate_of_its_own(tiny: Tiny) -> None:
    rates = group_rates(tiny, "adapter.lora_plus_ratio=16", "adapter.text_encoder.lr_scale=1")
    assert rates == {n: pytest.approx(r) for n, r in {
        "unet": LR, "unet_up": 16 * LR, "text_encoder": LR, "text_encoder_up": 16 * LR,
    }.items()}  # fmt: skip
    one = group_rates(tiny, "adapter.unet.lora_plus_ratio=4")
    assert one["unet_up"] == pytest.approx(4 * LR)
    assert "text_encoder_up" not in one
    assert "unet_up" not in group_rates(tiny, "adapter.text_encoder.lora_plus_ratio=4")


def group_rates(tiny: Tiny, *overrides: str) -> dict[str, float]:
    optimizer = tiny.build(*overrides).job.module.configure_optimizers()["optimizer"]
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


@effect("adapter.weight_norm.type", "adapter.weight_norm.max")
@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
def test_no_update_is_larger_than_the_limit(tiny: Tiny, norm: str) -> None:
    order = "fro" if norm == "frobenius" else 2
    limit = ("adapter.weight_norm.max=0.02", UNET_ONLY)
    free = update_norms(tiny.run(UNET_ONLY), order)
    held = update_norms(tiny.run(f"adapter.weight_norm.type={norm}", *limit), order)
    assert max(free) > 0.04
    assert max(held) == pytest.approx(0.02, rel=1e-4)


def update_norms(run: TinyRun, order: str | int) -> list[float]:
    norms = []
    for key, down in run.adapter.items():
        if key.endswith("lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            up, alpha = run.adapter[f"{name}.lora_up.weight"], run.adapter[f"{name}.alpha"]
            delta = up.flatten(1) @ down.flatten(1) * alpha / down.shape[0]
            norms.append(float(torch.linalg.matrix_norm(delta, ord=order)))  # type: ignore[arg-type]
    return norms


@effect("adapter.unet.freeze_after_steps", "adapter.text_encoder.freeze_after_steps")
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_frozen_part_keeps_what_it_had_then(tiny: Tiny, part: str) -> None:
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part]
    run = tiny.run(f"adapter.{part}.freeze_after_steps=2", "export.every_n_steps=2")
    middle = load_file(run.folder / "adapters" / "tiny-step000002.safetensors")
    changed = {key for key in middle if not torch.equal(middle[key], run.adapter[key])}
    assert changed
    assert not [key for key in changed if key.startswith(prefix)]


@effect("adapter.unet.rank", "adapter.unet.alpha")
@effect("adapter.text_encoder.rank", "adapter.text_encoder.alpha")
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_part_has_rank_and_alpha_of_its_own(tiny: Tiny, part: str) -> None:
    parts = tiny.survey(f"adapter.{part}.rank=6", f"adapter.{part}.alpha=1.5").parts
    (other,) = parts.keys() - {part}
    assert {(p.rank, p.alpha) for p in parts[part].layers.values()} == {(6, 1.5)}
    assert {(p.rank, p.alpha) for p in parts[other].layers.values()} == {(2, 2.0)}
    scaled = tiny.survey(f"adapter.{part}.rank=6", "adapter.alpha=1").parts[part]
    assert {(p.rank, p.alpha) for p in scaled.layers.values()} == {(6, 3.0)}


@effect("adapter.unet.rank_by_pattern", "adapter.unet.alpha_by_pattern")
@effect("adapter.text_encoder.rank_by_pattern", "adapter.text_encoder.alpha_by_pattern")
@pytest.mark.parametrize(("part", "name"), [("unet", "to_q"), ("text_encoder", "q_proj")])
def test_patterns_give_modules_rank_and_alpha(tiny: Tiny, part: str, name: str) -> None:
    layers = tiny.survey(
        f"adapter.{part}.rank_by_pattern=[{name}:5]",
        f"adapter.{part}.alpha_by_pattern=[{name}:2.5]",
    ).parts[part].layers  # fmt: skip
    assert {(p.rank, p.alpha) for path, p in layers.items() if path.endswith(name)} == {(5, 2.5)}
    assert {(p.rank, p.alpha) for path, p in layers.items() if not path.endswith(name)} == {
        (2, 2.0)
    }
    with pytest.raises(ConfigError, match="like to_q:8"):
        tiny.config(f"adapter.{part}.rank_by_pattern=[{name}]")
    with pytest.raises(ConfigError, match=r"rank_by_pattern.*to_qq.*nearest"):
        tiny.survey(f"adapter.{part}.rank_by_pattern=[to_qq:5]")


@effect("adapter.unet.lr_scale_by_pattern", "adapter.text_encoder.lr_scale_by_pattern")
@pytest.mark.parametrize(("part", "name"), [("unet", "to_q"), ("text_encoder", "q_proj")])
def test_patterns_give_modules_a_rate(tiny: Tiny, part: str, name: str) -> None:
    rates = group_rates(tiny, f"adapter.{part}.lr_scale_by_pattern=[{name}:0.25]")
    assert rates[f"{part}_x0.25"] == pytest.approx(rates[part] / 4)


BLOCKS = 25  # 12 down, 1 middle, 12 up


def block_list(**values: float) -> str:
    """Return 25 values: `rest`, but what is given as `bNUMBER`."""
    listed = [values.get(f"b{block}", values["rest"]) for block in range(BLOCKS)]
    return "[" + ",".join(f"{value:g}" for value in listed) + "]"


@effect("adapter.blocks.ranks", "adapter.blocks.alphas")
def test_blocks_have_ranks_and_alphas_and_rank_zero_is_no_adapter(tiny: Tiny) -> None:
    layers = tiny.survey(
        f"adapter.blocks.ranks={block_list(rest=3, b1=0, b12=7)}",
        f"adapter.blocks.alphas={block_list(rest=1.5)}",
    ).parts["unet"].layers  # fmt: skip
    assert not [path for path in layers if path.startswith("down_blocks.0.attentions.0")]
    middle = {p.rank for path, p in layers.items() if path.startswith("mid_block")}
    assert middle == {7}
    assert {p.alpha for p in layers.values()} == {1.5}


@effect("adapter.blocks.conv_ranks", "adapter.blocks.conv_alphas")
def test_blocks_have_ranks_and_alphas_for_convolutions(tiny: Tiny) -> None:
    layers = tiny.survey(
        FULL,
        f"adapter.blocks.conv_ranks={block_list(rest=5, b12=0)}",
        f"adapter.blocks.conv_alphas={block_list(rest=1.25)}",
    ).parts["unet"].layers  # fmt: skip
    assert "mid_block.resnets.0.conv1" not in layers
    assert "mid_block.resnets.0.time_emb_proj" in layers
    conv = layers["down_blocks.0.resnets.0.conv1"]
    assert (conv.rank, conv.alpha) == (5, 1.25)


@effect("adapter.blocks.down_lr_scales", "adapter.blocks.mid_lr_scales")
@effect("adapter.blocks.up_lr_scales", "adapter.blocks.lr_zero_threshold")
def test_blocks_have_rates_and_none_at_or_below_the_threshold(tiny: Tiny) -> None:
    layers = tiny.survey(
        "adapter.blocks.down_lr_scales=[sine+0.25]",
        "adapter.blocks.mid_lr_scales=[0.5]",
        "adapter.blocks.up_lr_scales=[reverse_linear]",
    ).parts["unet"].layers  # fmt: skip
    scale = {path.partition(".attentions")[0]: plan.lr_scale for path, plan in layers.items()}
    assert scale["mid_block"] == 0.5
    # Block 1 is the second of twelve: sin(pi/2 * 1/11) + 0.25. Up blocks begin at 13 with 1.
    assert scale["down_blocks.0"] == pytest.approx(math.sin(math.pi / 22) + 0.25)
    # Attention 1 of the second up block is number 13 + 3 + 1, the fifth of twelve.
    last = "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q"
    assert layers[last].lr_scale == pytest.approx(1 - 4 / 11)
    cut = tiny.survey(
        "adapter.blocks.down_lr_scales=[sine+0.25]",
        "adapter.blocks.mid_lr_scales=[0.5]",
        "adapter.blocks.lr_zero_threshold=0.45",
    ).parts["unet"].layers  # fmt: skip
    assert {path.split(".")[0] for path in cut} == {"mid_block", "up_blocks"}
    with pytest.raises(ConfigError, match=r"down_lr_scales.*12 numbers"):
        tiny.survey("adapter.blocks.down_lr_scales=[1, 2]")


@effect("adapter.init_from")
def test_a_run_can_begin_where_a_file_ended(tiny: Tiny, tmp_path: Path) -> None:
    first = tiny.run("adapter.alpha=1.5")
    for name in first.files:  # both layouts
        file = first.folder / "adapters" / name
        job = tiny.build("adapter.alpha=1.5", f"adapter.init_from={file}").job
        started = job.writer.write("", 0)
        for path in started:
            assert all(
                torch.equal(tensor, load_file(first.folder / "adapters" / path.name)[key])
                for key, tensor in load_file(path).items()
            )


@effect("adapter.init_from")
def test_what_differs_from_the_file_is_refused_with_both_values(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny.run("adapter.alpha=1.5").folder / "adapters" / "tiny.safetensors"
    start = f"adapter.init_from={file}"
    with pytest.raises(ConfigError, match=r"has rank 2 for .* more, but the run 5") as told:
        tiny.survey(start, "adapter.rank=5")
    assert len(told.value.problems) == 1, "one sentence, not one a module"
    with pytest.raises(ConfigError, match=r"has alpha 1\.5 for .*but the run 2"):
        tiny.survey(start)
    with pytest.raises(ConfigError, match=r"adapts text_encoder.*which this run does not"):
        tiny.survey(start, "adapter.alpha=1.5", UNET_ONLY)
    with pytest.raises(ConfigError, match="does not exist"):
        tiny.survey("adapter.init_from=none.safetensors")
    extra = tmp_path / "extra.safetensors"
    save_file({**load_file(file), "lora_unet_x.rubbish": torch.zeros(1)}, extra)
    with pytest.raises(ConfigError, match=r"holds lora_unet_x\.rubbish"):
        tiny.survey(f"adapter.init_from={extra}", "adapter.alpha=1.5")


@effect("adapter.init_from")
def test_the_settings_that_the_refusal_names_are_those_to_start_with(tiny: Tiny) -> None:
    wanted = ["adapter.unet.targets=[sd_scripts]", "adapter.rank=3", "adapter.alpha=1.5"]
    run = tiny.run(*wanted, UNET_ONLY)
    start = f"adapter.init_from={run.folder / 'adapters' / 'tiny.safetensors'}"
    with pytest.raises(ConfigError) as found:
        tiny.survey(start, "adapter.unet.targets=[attention]")
    # One for modules too many, one for modules too few, one for the rank: none for each module.
    assert len(found.value.problems) == 3
    for problem in found.value.problems:
        text, _, settings = problem.message.rstrip(".").partition(" settings of the file: ")
        assert " more, " in text
        assert set(settings.split()) == {*wanted, "adapter.text_encoder.enabled=false"}
    tiny.survey(start, *settings.split())


@effect("adapter.rank_from_file")
def test_rank_and_alpha_come_from_the_file_and_dropout_stays(tiny: Tiny) -> None:
    file = tiny.run("adapter.alpha=1.5").folder / "adapters" / "tiny.safetensors"
    part = tiny.survey(
        f"adapter.init_from={file}", "adapter.rank=5", "adapter.rank_from_file=true",
        "adapter.dropout=0.25",
    ).parts["unet"]  # fmt: skip
    assert {(p.rank, p.alpha) for p in part.layers.values()} == {(2, 1.5)}
    assert part.spec.dropout == 0.25
    with pytest.raises(ConfigError, match=r"adapts unet.* more, which this run does not"):
        tiny.survey(
            f"adapter.init_from={file}", "adapter.rank_from_file=true",
            "adapter.unet.targets=[to_q]",
        )  # fmt: skip
    with pytest.raises(ConfigError, match="names no file"):
        tiny.survey("adapter.rank_from_file=true")


@pytest.mark.parametrize(
    ("setting", "kind"),
    [("dropout=0.1", "loha"), ("module_dropout=0.1", "dora"), ("constraint=1", "lora"),
     ("decompose_factor=4", "loha"), ("weight_norm.type=spectral", "oft")],
)  # fmt: skip
def test_a_setting_that_means_nothing_for_the_kind_is_refused(
    tiny: Tiny, setting: str, kind: str
) -> None:
    with pytest.raises(ConfigError, match=f"but kind {kind} does not know it"):
        tiny.config(f"adapter.{setting}", f"adapter.kind={kind}")


LOG = ("logger=csv", "trainer.max_steps=3")


@effect("callbacks.dead_adapters", "callbacks.dead_adapters.after_steps")
def test_adapters_that_do_not_move_are_named_after_some_steps(tiny: Tiny) -> None:
    # So low a rate leaves the text encoder's float32 weights at zero while the UNet's move.
    slow = "adapter.text_encoder.lr=1e-60"
    said = tiny.run("callbacks.dead_adapters.after_steps=2", slow).stdout
    assert "8 of 8 adapters of text_encoder did not move in 2 steps" in said
    assert "adapters of unet" not in said
    later = tiny.run("callbacks.dead_adapters.after_steps=9", slow).stdout
    none = tiny.run("callbacks.dead_adapters=null", slow).stdout
    assert "did not move" not in later + none


@effect("callbacks.dead_adapters.every_n_steps")
def test_effective_ranks_are_logged_as_often_as_asked(tiny: Tiny) -> None:
    run = tiny.run("callbacks.dead_adapters.every_n_steps=1", *LOG)
    name = "effective_rank/unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    assert len(run.column(name)) == 3
    assert all(0 <= rank <= 2 for rank in run.column(name))
    assert run.column(name)[-1] > 1
    assert tiny.run(*LOG).column(name) == []


def group_decays(tiny: Tiny, *overrides: str) -> dict[str, float]:
    built = tiny.build("trainer.max_steps=1", *overrides)
    built.fit()
    (optimizer,) = built.job.trainer.optimizers
    return {group["name"]: group["weight_decay"] for group in optimizer.param_groups}


@effect("adapter.unet.weight_decay", "adapter.text_encoder.weight_decay")
def test_a_part_has_its_own_weight_decay(tiny: Tiny) -> None:
    assert group_decays(tiny) == {"unet": 0.01, "text_encoder": 0.01}
    own = group_decays(tiny, "adapter.unet.weight_decay=0.5")
    assert own == {"unet": 0.5, "text_encoder": 0.01}
    own = group_decays(tiny, "adapter.text_encoder.weight_decay=0")
    assert own == {"unet": 0.01, "text_encoder": 0.0}


@effect("adapter.decay_vectors")
def test_magnitudes_of_dora_can_be_spared_the_decay(tiny: Tiny) -> None:
    dora = ("adapter=dora", "adapter.decay_vectors=false")
    assert group_decays(tiny, *dora) == {
        "unet": 0.01, "unet_no_decay": 0.0, "text_encoder": 0.01, "text_encoder_no_decay": 0.0,
    }  # fmt: skip
    assert group_decays(tiny, "adapter=dora") == {"unet": 0.01, "text_encoder": 0.01}


@effect("adapter.rank")
@pytest.mark.parametrize(
    ("kind", "rank", "blocks"), [("oft", 3, 2), ("boft", 3, 2), ("boft", 8, 8)]
)
def test_the_plan_tells_the_blocks_that_a_rotation_really_has(
    tiny: Tiny, kind: str, rank: int, blocks: int
) -> None:
    options = (f"adapter.kind={kind}", f"adapter.rank={rank}", UNET_ONLY, "export.layouts=[kohya]")
    (plan,) = tiny.survey(*options).parts.values()
    assert f"blocks of {blocks} for rank {rank}," in plan.describe()
    live = tiny.build(*options).job.module.adapted["unet"]
    found = {p.shape[-1] for name, p in live.named_parameters() if "oft_blocks" in name}
    assert found == {blocks}
