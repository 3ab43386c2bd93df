"""Matching, counting, injecting and switching off."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from loralab.adapters.inject import adapter_disabled, count_parameters, inject, match_targets
from loralab.adapters.layers import adapter_layers
from loralab.adapters.spec import AdapterSpec
from loralab.adapters.state import adapter_state, trainable_parameters
from loralab.errors import AdapterError
from tests.adapters.adapted import (
    CONVOLUTIONS,
    SD_SCRIPTS_TEXT_ENCODER,
    SD_SCRIPTS_UNET,
    lora,
    randomize,
    run_text_encoder,
    run_unet,
)
from tests.tiny import WIDTH


def test_spec_names_every_value_out_of_range() -> None:
    with pytest.raises(AdapterError) as caught:
        AdapterSpec("lora", 0, 0.0, 1.0, ())
    assert [problem.key for problem in caught.value.problems] == [
        "adapter.rank",
        "adapter.alpha",
        "adapter.dropout",
        "adapter.targets",
    ]


def test_unknown_kind_is_refused_with_the_kinds_there_are(unet: UNet2DConditionModel) -> None:
    with pytest.raises(
        AdapterError, match=r"adapter\.kind is 'lara'; it must be one of boft, dora, "
    ):
        inject(unet, AdapterSpec("lara", 4, 4.0, 0.0, ("to_q",)), part="unet")


def test_suffix_target_is_compared_with_whole_pieces() -> None:
    module = nn.ModuleDict({"to_q": nn.Linear(2, 2), "into_q": nn.Linear(2, 2)})
    module["inner"] = nn.ModuleDict({"to_q": nn.Linear(2, 2), "toxq": nn.Linear(2, 2)})
    assert match_targets(module, ["to_q"]) == {"to_q": ["to_q", "inner.to_q"]}


def test_regex_target_is_compared_with_the_complete_name(unet: UNet2DConditionModel) -> None:
    target = r"down_blocks\.0\..*attn2\.to_k"
    found = match_targets(unet, [target])[target]
    assert found == ["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"]


def test_injection_takes_only_the_exact_modules_that_matched() -> None:
    module = nn.ModuleDict({"proj": nn.Linear(2, 2), "x": nn.ModuleDict({"proj": nn.Linear(2, 2)})})
    report = inject(module, lora("^proj$"), part="plain")
    assert list(adapter_layers(module)) == ["proj"]
    assert report.num_modules == 1


def test_every_target_that_matches_nothing_is_named_with_the_nearest_names(
    unet: UNet2DConditionModel,
) -> None:
    with pytest.raises(AdapterError) as caught:
        match_targets(unet, ["to_q", "to_qq", "ff.net.3", "attn[2", ".*attn9.*"], part="unet")
    first, second, third, fourth = (str(problem) for problem in caught.value.problems)
    assert first.startswith("adapter.unet.targets holds 'to_qq', which matches no Linear or Conv2d")
    assert "nearest: to_q" in first
    assert "'ff.net.3'" in second
    assert "ff.net.2" in second
    assert "'attn[2', which is not a regular expression" in third
    assert "'.*attn9.*'" in fourth
    assert all(problem.key == "adapter.unet.targets" for problem in caught.value.problems)


def test_target_that_names_a_container_says_what_it_is(unet: UNet2DConditionModel) -> None:
    with pytest.raises(AdapterError, match="'attn1', which matches only Attention; an adapter"):
        match_targets(unet, ["attn1"])


def test_regex_that_fits_only_a_piece_of_a_name_says_so(unet: UNet2DConditionModel) -> None:
    with pytest.raises(AdapterError, match=r"matches a piece of .* but no complete name"):
        match_targets(unet, [r"attn2\.to_[kv]"])


@pytest.mark.parametrize(
    ("part", "targets", "num_modules", "num_parameters"),
    [
        # 192 and 72 as sd-scripts adapts them. Parameters at rank 4, by hand for the encoder:
        # 12 layers x 4 x (4 x (768 + 768) + 2 x (768 + 3072)).
        ("unet", SD_SCRIPTS_UNET, 192, None),
        ("unet", (*SD_SCRIPTS_UNET, *CONVOLUTIONS, "upsamplers.0.conv"), 278, None),
        ("text_encoder", SD_SCRIPTS_TEXT_ENCODER, 72, 12 * 4 * (4 * 1536 + 2 * 3840)),
    ],
)
def test_real_size_sd1_on_meta_has_the_modules_that_sd_scripts_counts(
    sd1_skeleton: Callable[[str], nn.Module],
    part: str,
    targets: tuple[str, ...],
    num_modules: int,
    num_parameters: int | None,
) -> None:
    module = sd1_skeleton(part)
    hits = match_targets(module, targets)
    assert len({name for names in hits.values() for name in names}) == num_modules
    counted = count_parameters(module, lora(*targets))
    assert num_parameters in (None, counted)


def test_targets_of_one_network_do_not_stay_for_the_next(
    sd1_skeleton: Callable[[str], nn.Module],
) -> None:
    counts = []
    for targets in ((*SD_SCRIPTS_UNET, *CONVOLUTIONS, "upsamplers.0.conv"), SD_SCRIPTS_UNET):
        module = sd1_skeleton("unet")
        inject(module, lora(*targets), part="unet")
        counts.append(len(adapter_layers(module)))
    assert counts == [278, 192], "228 were those of the residual blocks that stayed"


def test_counted_parameters_equal_the_injected_ones(unet: UNet2DConditionModel) -> None:
    spec = lora(*SD_SCRIPTS_UNET, *CONVOLUTIONS, "to_q")
    counted = count_parameters(unet, spec)
    report = inject(unet, spec, part="unet")
    assert report.part == "unet"
    assert report.num_parameters == counted
    assert sum(p.numel() for p in trainable_parameters(unet)) == counted
    assert report.num_modules == len(adapter_layers(unet))
    assert report.hits["to_q"] == 8  # four transformers (down, mid, two up), two attentions each
    assert report.hits["conv1"] == 8  # two down, two in the middle, four up


def test_module_hit_by_two_targets_counts_once(unet: UNet2DConditionModel) -> None:
    report = inject(unet, lora("attn1.to_q", "to_q"), part="unet")
    assert dict(report.hits) == {"attn1.to_q": 4, "to_q": 8}
    assert report.num_modules == 8


def test_fresh_adapter_leaves_the_output_exactly_as_it_was(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel
) -> None:
    before = run_unet(unet), run_text_encoder(text_encoder)
    inject(unet, lora(*SD_SCRIPTS_UNET, *CONVOLUTIONS), part="unet")
    inject(text_encoder, lora(*SD_SCRIPTS_TEXT_ENCODER), part="text_encoder")
    assert torch.equal(run_unet(unet), before[0])
    assert torch.equal(run_text_encoder(text_encoder), before[1])


def test_only_the_adapter_is_trainable(unet: UNet2DConditionModel) -> None:
    inject(unet, lora("to_q"), part="unet")
    trained = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)


def test_every_adapter_parameter_gets_a_gradient_and_no_other(unet: UNet2DConditionModel) -> None:
    inject(unet, lora(*SD_SCRIPTS_UNET, *CONVOLUTIONS), part="unet")
    randomize(unet)
    noisy, context = torch.randn(1, 4, 8, 8), torch.randn(1, 5, WIDTH)
    unet(noisy, torch.tensor([3]), context).sample.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in trainable_parameters(unet))
    assert all(p.grad is None for p in unet.parameters() if not p.requires_grad)


def test_same_seed_gives_the_same_adapter_whatever_the_dtype_of_the_base(
    text_encoder: CLIPTextModel,
) -> None:
    states = []
    for dtype in (torch.float32, torch.bfloat16):
        base = type(text_encoder)(text_encoder.config).to(dtype)
        torch.manual_seed(5)
        inject(base, lora("q_proj"), part="text_encoder")
        states.append(adapter_state(base))
    first, second = states
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(tensor.dtype == torch.float32 for tensor in second.values())


def test_down_factor_is_drawn_within_the_bound_of_kaiming(unet: UNet2DConditionModel) -> None:
    torch.manual_seed(5)
    inject(unet, lora("to_q", rank=8), part="unet")
    down = adapter_state(unet)[
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    ]
    bound = down.shape[1] ** -0.5  # gain of a = sqrt(5) is sqrt(1/3); bound = gain sqrt(3/fan_in)
    assert down.abs().max() <= bound
    assert down.abs().max() > 0.9 * bound


def test_half_precision_base_runs_with_a_float32_adapter(text_encoder: CLIPTextModel) -> None:
    text_encoder.to(torch.bfloat16)
    inject(text_encoder, lora("q_proj"), part="text_encoder")
    randomize(text_encoder)
    assert run_text_encoder(text_encoder).dtype == torch.bfloat16


def test_evaluation_mode_has_no_adapter_dropout(text_encoder: CLIPTextModel) -> None:
    inject(text_encoder, lora("q_proj", dropout=0.9), part="text_encoder")
    randomize(text_encoder)
    assert not any(module.training for module in text_encoder.modules())
    assert torch.equal(run_text_encoder(text_encoder), run_text_encoder(text_encoder))


def test_disabled_adapter_gives_the_base_output_exactly(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel
) -> None:
    base = run_unet(unet)
    inject(unet, lora(*SD_SCRIPTS_UNET, *CONVOLUTIONS), part="unet")
    randomize(unet)
    adapted = run_unet(unet)
    with adapter_disabled([unet, text_encoder]):
        assert torch.equal(run_unet(unet), base)
    assert not torch.equal(adapted, base)
    assert torch.equal(run_unet(unet), adapted)


def test_adapter_returns_after_an_exception(trained: dict[str, nn.Module]) -> None:
    before = run_unet(trained["unet"])
    frozen = trainable_parameters(trained["unet"])[0].requires_grad_(False)
    num_trainable = len(trainable_parameters(trained["unet"]))
    with pytest.raises(KeyError), adapter_disabled(trained.values()):
        raise KeyError
    assert torch.equal(run_unet(trained["unet"]), before)
    assert len(trainable_parameters(trained["unet"])) == num_trainable
    assert not frozen.requires_grad


def test_adapter_that_was_off_stays_off_after_the_block(trained: dict[str, nn.Module]) -> None:
    unet = trained["unet"]
    with adapter_disabled([unet]):
        base = run_unet(unet)
        with adapter_disabled([unet]):
            pass
        assert torch.equal(run_unet(unet), base)
