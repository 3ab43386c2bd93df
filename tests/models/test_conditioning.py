import copy
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel

from loralab.models.conditioning import ClipConditioner
from loralab.models.family import ModelFamily
from loralab.models.registry import load_family
from tests.tiny import make_tiny_sd2

CAPTIONS = ["red, circle, white ground", "", "blue, stripes"]


@pytest.fixture
def conditioner(family: ModelFamily) -> ClipConditioner:
    return family.conditioner


def count_calls(conditioner: ClipConditioner) -> list[int]:
    """Return a list that grows by the batch size of every run of the encoder."""
    sizes: list[int] = []
    conditioner.encoders[0].model.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    return sizes


def test_clip_skip_one_is_the_librarys_last_hidden_state(conditioner: ClipConditioner) -> None:
    (encoder,) = conditioner.encoders
    wanted = encoder.model(encoder.tokenize(CAPTIONS).flatten(0, 1)).last_hidden_state
    got = conditioner.encode(CAPTIONS).hidden_states
    assert got.shape == (3, 77, 32)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize("trainable", [False, True])
def test_clip_skip_takes_the_nth_last_layer_through_the_final_norm(
    folder: Path, clip_skip: int, trainable: bool
) -> None:
    conditioner = load_family("sd1", folder, clip_skip=clip_skip).conditioner
    encoder = conditioner.encoders[0].model
    ids = conditioner.encoders[0].tokenize(CAPTIONS).flatten(0, 1)
    states = encoder(ids, output_hidden_states=True).hidden_states
    num_layers = encoder.config.num_hidden_layers
    assert len(states) == num_layers + 1
    wanted = encoder.final_layer_norm(states[num_layers + 1 - clip_skip])
    encoder.requires_grad_(trainable)
    got = conditioner.encode(CAPTIONS).hidden_states
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("clip_skip", "layers_left_out"), [(None, 1), (1, 1), (2, 2)])
def test_the_encoder_of_sd2_lacks_its_last_layer_already(
    tmp_path: Path, clip_skip: int | None, layers_left_out: int
) -> None:
    """Stable Diffusion 2 was made with the last layer but one of a whole OpenCLIP encoder."""
    folder = make_tiny_sd2(tmp_path / "sd2")
    conditioner = load_family("sd2", folder, clip_skip=clip_skip).conditioner
    kept = conditioner.encoders[0].model
    config = copy.deepcopy(kept.config)
    config.num_hidden_layers += 1
    whole = CLIPTextModel(config).eval()
    missing, unexpected = whole.load_state_dict(kept.state_dict(), strict=False)
    assert unexpected == []
    assert all(f"layers.{config.num_hidden_layers - 1}." in name for name in missing)
    ids = conditioner.encoders[0].tokenize(CAPTIONS).flatten(0, 1)
    states = whole(ids, output_hidden_states=True).hidden_states
    wanted = kept.final_layer_norm(states[-1 - layers_left_out])
    got = conditioner.encode(CAPTIONS).hidden_states
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_clip_skip_two_differs_from_one(folder: Path, conditioner: ClipConditioner) -> None:
    other = load_family("sd1", folder, clip_skip=2).conditioner
    first, second = (c.encode(["red"]).hidden_states for c in (conditioner, other))
    assert not torch.allclose(first, second, atol=1e-2)


def test_frozen_encoder_runs_once_per_caption(conditioner: ClipConditioner) -> None:
    sizes = count_calls(conditioner)
    first = conditioner.encode(["red", "blue", "red"]).hidden_states
    again = conditioner.encode(["blue", "red"]).hidden_states
    assert sizes == [1, 1]
    assert not first.requires_grad
    torch.testing.assert_close(first[[1, 0]], again, rtol=0, atol=0)


def test_a_remembered_caption_does_not_depend_on_the_batch_it_came_in(
    folder: Path, conditioner: ClipConditioner
) -> None:
    other = load_family("sd1", folder).conditioner
    together = conditioner.encode(CAPTIONS).hidden_states[2]
    alone = other.encode(CAPTIONS[2:]).hidden_states[0]
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_encoder_in_training_runs_on_the_batch_each_time_with_gradients(
    conditioner: ClipConditioner,
) -> None:
    sizes = count_calls(conditioner)
    weight = conditioner.encoders[0].model.get_parameter("encoder.layers.0.self_attn.q_proj.weight")
    weight.requires_grad_(True)
    for _ in range(2):
        states = conditioner.encode(["red", "red"]).hidden_states
    assert sizes == [2, 2]
    states.square().mean().backward()
    assert weight.grad is not None


def test_what_was_remembered_is_forgotten_once_the_encoder_trains(
    conditioner: ClipConditioner,
) -> None:
    before = conditioner.encode(["red"]).hidden_states
    norm = conditioner.encoders[0].model.final_layer_norm.weight
    norm.requires_grad_(True)
    conditioner.encode(["blue"])
    with torch.no_grad():
        norm.mul_(2)
    norm.requires_grad_(False)
    after = conditioner.encode(["red"]).hidden_states
    assert not torch.allclose(before, after)


def test_an_encoder_with_a_frozen_adapter_remembers_nothing(conditioner: ClipConditioner) -> None:
    import peft

    encoder = conditioner.encoders[0].model
    encoder.add_adapter(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    encoder.requires_grad_(False)
    on = conditioner.encode(["red"]).hidden_states
    encoder.disable_adapters()
    off = conditioner.encode(["red"]).hidden_states
    assert not torch.allclose(on, off)


def test_states_remembered_in_inference_mode_can_be_trained_on(
    conditioner: ClipConditioner,
) -> None:
    with torch.inference_mode():
        conditioner.encode(["red"])
    layer = torch.nn.Linear(32, 1)
    layer(conditioner.encode(["red"]).hidden_states).sum().backward()
    assert layer.weight.grad is not None


def test_autocast_does_not_change_what_is_remembered(
    folder: Path, conditioner: ClipConditioner
) -> None:
    other = load_family("sd1", folder).conditioner
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = conditioner.encode(["red"]).hidden_states
    torch.testing.assert_close(mixed, other.encode(["red"]).hidden_states, rtol=0, atol=0)


def test_memory_is_bounded_and_drops_the_least_used(conditioner: ClipConditioner) -> None:
    conditioner.encoders[0].memory.limit_bytes = 2 * 77 * 32 * 4  # two captions in float32
    conditioner.encode(["red", "blue"])
    conditioner.encode(["red", "green"])
    sizes = count_calls(conditioner)
    conditioner.encode(["red", "green"])
    assert sizes == []
    conditioner.encode(["blue"])
    assert sizes == [1]


def test_memory_follows_a_change_of_dtype(conditioner: ClipConditioner) -> None:
    conditioner.encode(["red"])
    conditioner.to(torch.bfloat16)
    assert conditioner.encode(["red"]).hidden_states.dtype == torch.bfloat16


def test_recorded_tokens_take_the_place_of_captions(conditioner: ClipConditioner) -> None:
    ids = conditioner.encoders[0].tokenize(["red"])
    got = conditioner.encode(["something else"], input_ids=ids).hidden_states
    torch.testing.assert_close(got, conditioner.encode(["red"]).hidden_states, rtol=0, atol=0)
