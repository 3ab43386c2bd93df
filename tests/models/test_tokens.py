"""Rows of tokens, CLIP's own vocabulary, weights of words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from loralab.models.prompt_weights import parse_weights
from loralab.models.registry import load_family
from loralab.models.text_encoder import ClipEncoder
from loralab.models.tokens import join_rows, split_rows
from loralab.models.vocabulary import clip_tokenizer

BEGIN, END = 49406, 49407


def sd_scripts_rows(tokens: list[int], *, pad: int, rows: int) -> list[list[int]]:
    """The rows as `get_input_ids` of kohya-ss/sd-scripts' train_util.py makes them, step by step.

    It has the tokenizer pad to the full length first and then cuts pieces of 75 out of that line.
    """
    full = 75 * rows + 2
    line = ([BEGIN, *tokens][: full - 1] + [END] + [pad] * full)[:full]
    if rows == 1:
        return [line]
    found = []
    for start in range(1, full - 75 - 1 + 1, 75):
        row = [line[0], *line[start : start + 75], line[-1]]
        if pad != END:
            if row[-2] != END and row[-2] != pad:
                row[-1] = END
            if row[1] == pad:
                row[1] = END
        found.append(row)
    return found


@pytest.mark.parametrize("pad", [END, 0])
@pytest.mark.parametrize("length", [10, 74, 75, 76, 80, 150, 160, 225, 300])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_rows_are_those_of_sd_scripts(length: int, pad: int, rows: int) -> None:
    tokens = [1000 + number for number in range(length)]
    found = split_rows(tokens, begin=BEGIN, end=END, pad=pad, rows=rows)
    assert found == sd_scripts_rows(tokens, pad=pad, rows=rows)
    assert [len(row) for row in found] == [77] * rows


def test_rows_worked_by_hand() -> None:
    """80 tokens in two rows: 75 and 5; CLIP-L fills with its end, OpenCLIP with 0 after an end."""
    tokens = list(range(1, 81))
    first, second = split_rows(tokens, begin=BEGIN, end=END, pad=END, rows=2)
    assert first == [BEGIN, *range(1, 76), END]
    assert second == [BEGIN, *range(76, 81)] + [END] * 71
    first, second = split_rows(tokens, begin=BEGIN, end=END, pad=0, rows=2)
    assert first == [BEGIN, *range(1, 76), END]
    assert second == [BEGIN, *range(76, 81), END] + [0] * 70
    _, empty = split_rows(tokens[:10], begin=BEGIN, end=END, pad=0, rows=2)
    assert empty == [BEGIN, END] + [0] * 75
    _, empty = split_rows(tokens[:10], begin=BEGIN, end=END, pad=END, rows=2)
    assert empty == [BEGIN] + [END] * 76


def test_joined_rows_keep_the_first_start_and_the_last_end() -> None:
    states = torch.arange(2 * 3 * 5).reshape(1, 6, 5)[:, :3].reshape(1, 3, 5, 1)
    assert join_rows(states).flatten().tolist() == [0, 1, 2, 3, 6, 7, 8, 11, 12, 13, 14]


def test_the_shipped_vocabulary_gives_the_known_numbers() -> None:
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [BEGIN, 320, 1125, 539, 320, 2368, END]
    assert (tokenizer.pad_token_id, clip_tokenizer(pad_token="!").pad_token_id) == (END, 0)


@pytest.fixture(scope="module")
def model() -> CLIPTextModel:
    """A text encoder of four small layers that reads CLIP's vocabulary."""
    torch.manual_seed(0)
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2
        )
    ).eval()


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("final_norm", [True, False])
def test_clip_skip_is_transformers_layer(
    model: CLIPTextModel, layer: int, final_norm: bool
) -> None:
    encoder = ClipEncoder(clip_tokenizer(), model, layer=layer, final_norm=final_norm)
    model.requires_grad_(False)
    ids = clip_tokenizer()("a photo of a cat", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states[4 + 1 - layer]
        wanted = model.final_layer_norm(states) if final_norm else states
    found = encoder.encode(["a photo of a cat"]).states
    assert (found - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("rows", [2, 3])
def test_a_long_context_is_encoded_row_by_row(model: CLIPTextModel, rows: int) -> None:
    tokenizer = clip_tokenizer()
    encoder = ClipEncoder(tokenizer, model, rows=rows)
    model.requires_grad_(False)
    caption = " ".join(["cat"] * 80)
    lines = split_rows([2368] * 80, begin=BEGIN, end=END, pad=END, rows=rows)
    with torch.no_grad():
        each = model(torch.tensor(lines)).last_hidden_state
    wanted = torch.cat([each[0, :1], *(row[1:-1] for row in each), each[-1, -1:]])
    found = encoder.encode([caption]).states
    assert found.shape == (1, 75 * rows + 2, 16)
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-5)


def test_a_long_caption_pools_at_the_first_row(tmp_path: Path) -> None:
    from tests.tiny import make_tiny_sdxl

    folder = make_tiny_sdxl(tmp_path / "sdxl")
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]])
    short, long = (
        load_family("sdxl", folder, text_rows=rows).conditioner.encode(["red, blue"], sizes=sizes)
        for rows in (1, 2)
    )
    assert short.pooled is not None
    torch.testing.assert_close(short.pooled, long.pooled)
    assert (short.hidden_states.shape[1], long.hidden_states.shape[1]) == (77, 152)


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (cat:1.3), dog", [("a ", 1.0), ("cat", 1.3), (", dog", 1.0)]),
        ("(red)", [("red", 1.1)]),
        ("((red))", [("red", 1.21)]),
        ("[grey]", [("grey", 1 / 1.1)]),
        ("(a [b]:2)", [("a ", 2.0), ("b", 2 / 1.1)]),
        (r"name \(place\)", [("name (place)", 1.0)]),
        ("time: 10:30", [("time: 10:30", 1.0)]),
        ("never (closed", [("never ", 1.0), ("closed", 1.1)]),
        ("never opened)", [("never opened)", 1.0)]),
        ("(half:.5)", [("half", 0.5)]),
        ("", []),
    ],
)
def test_weights_of_words(caption: str, wanted: list[tuple[str, float]]) -> None:
    found = parse_weights(caption)
    assert [text for text, _ in found] == [text for text, _ in wanted]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in wanted])


def test_weights_multiply_the_states_of_their_tokens(model: CLIPTextModel) -> None:
    model.requires_grad_(False)
    plain = ClipEncoder(clip_tokenizer(), model)
    weighed = ClipEncoder(clip_tokenizer(), model, prompt_weights=True)
    wanted = plain.encode(["a photo of a cat"]).states.clone()
    wanted[:, 2] *= 1.5  # start, a, photo
    found = weighed.encode(["a (photo:1.5) of a cat"]).states
    torch.testing.assert_close(found, wanted)
    assert weighed.tokenize(["a (photo:1.5) of a cat"]).tolist() == (
        plain.tokenize(["a photo of a cat"]).tolist()
    )
