"""Captions of the demo's pretraining, and the small byte-pair tokenizer that reads them."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

NUM_MERGES = 2300
START, END = "<|startoftext|>", "<|endoftext|>"
_SYLLABLES = [first + vowel for first in "bcdfghjklmnprstvwyz" for vowel in "aeiouy"]


def compose_caption(parts: tuple[str, ...], style: str, draw: random.Random) -> str:
    """Return a random caption such as "animal, twemoji, fox".

    The style word stands anywhere, so that content and style are learnt apart. An invented word
    sometimes takes its place: the trigger word of a LoRA is unknown to the base as well, and
    must not derail it. One caption in ten is empty, for classifier-free guidance.
    """
    if draw.random() < 0.1:
        return ""
    label, *tags = parts
    words = [tag for tag in tags if draw.random() < 0.6]
    if not words or draw.random() < 0.97:
        words.insert(0, label)
    if draw.random() < 0.3:
        draw.shuffle(words)
    choice = draw.random()
    if choice < 0.88:
        word = style if choice < 0.8 else invent_word(draw)
        words.insert(draw.randint(0, len(words)), word)
    return ", ".join(words)


def invent_word(draw: random.Random) -> str:
    """Return a pronounceable word of two to four syllables that means nothing."""
    return "".join(draw.choices(_SYLLABLES, k=draw.randint(2, 4)))


def train_tokenizer(texts: list[str], folder: Path) -> None:
    """Learn byte-pair merges from `texts` and write the files of a CLIPTokenizer."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    merges = merges[:NUM_MERGES]
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *map("".join, merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
