"""A random CLIP model of the real class, in the folder that transformers writes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from tests.tiny import MAX_TOKENS, write_tokenizer

SIDE = 32


def make_tiny_clip(path: Path, *, seed: int = 0) -> Path:
    """Write a CLIP model of 0.2 MB that tells pictures and words apart."""
    vocabulary = write_tokenizer(path)
    shared = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    ends = {
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    text = {**shared, **ends, "vocab_size": vocabulary, "max_position_embeddings": MAX_TOKENS}
    vision = {**shared, "image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        for parameter in model.parameters():  # the default draw hardly tells inputs apart
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(path)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(path)
    return path
