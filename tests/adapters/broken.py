"""Adapter files that are wrong in one way each, and a piece of the sentence each must get."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


class Payload:
    """An object whose unpickling would leave a mark."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("pickle-was-run"),)


def _truncated(file: Path, out: Path) -> None:
    out.write_bytes(file.read_bytes()[:-100])


def _changed(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path, Path], None]:
    def damage(file: Path, out: Path) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, out)

    return damage


def _garbage(file: Path, out: Path) -> None:
    out.write_bytes(b"\xff" * 500)


def _payload(file: Path, out: Path) -> None:
    out.write_bytes(pickle.dumps({"a": Payload()}))


def _not_flat(file: Path, out: Path) -> None:
    torch.save({"a": {"b": torch.zeros(1)}}, out)


DOWN, UP = f"{Q}.lora_down.weight", f"{Q}.lora_up.weight"
BROKEN: dict[str, tuple[str, Callable[[Path, Path], None], str]] = {
    "truncated": ("a.safetensors", _truncated, "cannot be read as a safetensors file"),
    "garbage": ("a.safetensors", _garbage, "cannot be read as a safetensors file"),
    "empty": ("a.safetensors", lambda f, o: o.write_bytes(b"") and None, "cannot be read"),
    "missing": ("a.safetensors", lambda f, o: None, "does not exist"),
    "no tensors": ("a.safetensors", _changed(dict.clear), "holds no adapter"),
    "NaN": ("a.safetensors", _changed(lambda t: t[DOWN].fill_(float("nan"))), "not finite in"),
    "half a module": ("a.safetensors", _changed(lambda t: t.pop(UP)), "lacks the up factor of"),
    "extra key": (
        "a.safetensors", _changed(lambda t: t.update({"vae.x": torch.zeros(1)})),
        "holds vae.x, which is no tensor of an adapter",
    ),
    "negative alpha": (
        "a.safetensors", _changed(lambda t: t.update({f"{Q}.alpha": torch.tensor(-1.0)})),
        "has alpha -1",
    ),
    "unknown tensor": (
        "a.safetensors", _changed(lambda t: t.update({f"{Q}.hada_w1_a": torch.zeros(1)})),
        "are not a complete adapter",
    ),
    "pickle payload": ("a.pt", _payload, "could run code"),
    "nested pickle": ("a.ckpt", _not_flat, "not a flat dictionary of tensors"),
}  # fmt: skip


def _second_encoder(file: Path, out: Path) -> None:
    new = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    found = {k: t for k, t in load_file(file).items() if k.startswith(Q)}
    save_file({new + k.removeprefix(Q): t for k, t in found.items()}, out)


# Whole files that belong on another base.
OTHER_BASE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "wrong family": (_second_encoder, "which .* does not have"),
    "wrong shapes": (_changed(lambda t: t.update({DOWN: torch.zeros(4, 33)})), "do not fit"),
}
