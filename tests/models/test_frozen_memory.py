"""What is remembered of a frozen network, for how long, and that it changes no bit."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from loralab.models.family import ModelFamily
from loralab.models.frozen_memory import FrozenMemory, frozen_state
from loralab.models.registry import load_family
from loralab.models.text_encoder import ClipEncoder
from tests.models.test_conditioning import count_calls

STATES_BYTES = 77 * 32 * 4  # of one caption in float32


@pytest.fixture
def encoder(family: ModelFamily) -> ClipEncoder:
    return family.conditioner.encoders[0]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).requires_grad_(False)


def outputs(number: float, *, size: int = 1) -> tuple[Tensor, None]:
    return torch.full((size,), float(number)), None


def test_a_text_is_run_once() -> None:
    memory: FrozenMemory[tuple[Tensor, None]] = FrozenMemory(100)
    assert memory.renew(network())
    first = memory.recall("a", lambda: outputs(1))
    assert memory.recall("a", lambda: outputs(2)) is first
    assert (len(memory), memory.num_bytes) == (1, 4)


def test_the_least_recently_used_goes_first() -> None:
    memory: FrozenMemory[tuple[Tensor, None]] = FrozenMemory(8)
    memory.renew(network())
    for text in ("a", "b", "a", "c"):
        memory.recall(text, lambda: outputs(0))
    assert (len(memory), memory.num_bytes) == (2, 8)
    assert memory.recall("a", lambda: outputs(9))[0].item() == 0
    assert memory.recall("b", lambda: outputs(9))[0].item() == 9


def test_what_does_not_fit_is_not_kept_and_drives_nothing_out() -> None:
    memory: FrozenMemory[tuple[Tensor, None]] = FrozenMemory(8)
    memory.renew(network())
    memory.recall("a", lambda: outputs(0))
    memory.recall("long", lambda: outputs(0, size=3))
    assert (len(memory), memory.num_bytes) == (1, 4)
    memory.limit_bytes = 0
    memory.recall("b", lambda: outputs(0))
    assert (len(memory), memory.num_bytes) == (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net[0].weight.mul_(2),
        lambda net: net.to(torch.float64),
        lambda net: net.load_state_dict(network().state_dict()),
        lambda net: setattr(net[0].weight, "data", torch.ones(4, 4)),
    ],
)
def test_any_change_of_a_weight_is_forgetting(change) -> None:
    memory: FrozenMemory[tuple[Tensor, None]] = FrozenMemory(100)
    net = network()
    memory.renew(net)
    memory.recall("a", lambda: outputs(0))
    assert memory.renew(net)
    assert len(memory) == 1
    with torch.no_grad():
        change(net)
    assert memory.renew(net)
    assert len(memory) == 0


def test_a_trainable_weight_is_not_frozen() -> None:
    memory: FrozenMemory[tuple[Tensor, None]] = FrozenMemory(100)
    net = network()
    memory.renew(net)
    memory.recall("a", lambda: outputs(0))
    net[0].bias.requires_grad_(True)
    assert not memory.renew(net)
    assert (len(memory), memory.num_bytes) == (0, 0)
    with pytest.raises(AssertionError):
        memory.recall("a", lambda: outputs(0))


def test_adapters_are_not_frozen_even_when_their_weights_are() -> None:
    import peft

    wrapped = network()
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["0"]), wrapped)
    assert frozen_state(wrapped.requires_grad_(False)) is None
    replaced = network()
    replaced[0].forward = lambda x: x  # as LyCORIS does
    assert frozen_state(replaced) is None
    assert frozen_state(network()) is not None


def test_memory_changes_no_bit_of_shuffled_and_dropped_captions(folder: Path) -> None:
    rng = random.Random(0)
    tags = ["red", "circle", "white ground", "stripes"]
    stream = [
        [", ".join(rng.sample(tags, 3)) if rng.random() < 0.7 else "" for _ in range(4)]
        for _ in range(20)
    ]
    found = []
    for limit in (256 * 2**20, 3 * STATES_BYTES, 0):
        (encoder,) = load_family("sd1", folder).conditioner.encoders
        encoder.memory.limit_bytes = limit
        found.append(torch.stack([encoder.encode(captions).states for captions in stream]))
        assert encoder.memory.num_bytes <= limit
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_captions_count_with_their_size(encoder: ClipEncoder) -> None:
    encoder.encode(["red", "blue", "red"])
    assert (len(encoder.memory), encoder.memory.num_bytes) == (2, 2 * STATES_BYTES)


def test_a_limit_of_zero_runs_every_caption(family: ModelFamily, encoder: ClipEncoder) -> None:
    encoder.memory.limit_bytes = 0
    sizes = count_calls(family.conditioner)
    encoder.encode(["red", "red"])
    assert sizes == [1, 1]


def test_weights_changed_while_frozen_are_noticed(encoder: ClipEncoder) -> None:
    before = encoder.encode(["red"]).states
    with torch.no_grad():
        encoder.model.final_layer_norm.weight.mul_(2)
    assert not torch.allclose(encoder.encode(["red"]).states, before)


def test_a_frozen_encoder_never_drops_out(folder: Path) -> None:
    (encoder,) = load_family("sd1", folder).conditioner.encoders
    for module in encoder.model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.9  # of the attention probabilities, in train mode
    expected = encoder.encode(["red", "blue"]).states
    encoder.memory.limit_bytes = 0
    encoder.train()
    assert torch.equal(encoder.encode(["red", "blue"]).states, expected)
    encoder.model.requires_grad_(True)
    encoder.train()
    assert not torch.allclose(encoder.encode(["red", "blue"]).states, expected)
