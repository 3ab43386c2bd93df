"""Five training steps, a file, and the same outputs from another program that reads the file.

``python -m tests.adapters.reloading`` prints the table of kinds, families and namings.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoHaConfig, LoKrConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from loralab.adapters.export import verify_file, write_adapter
from loralab.adapters.inject import inject
from loralab.adapters.spec import AdapterSpec
from loralab.adapters.state import trainable_parameters
from tests.adapters.adapted import CONVOLUTIONS, SD_SCRIPTS_TEXT_ENCODER, SD_SCRIPTS_UNET
from tests.tiny import MAKERS, write_part

KINDS = ("lora", "dora", "loha", "lokr", "tucker", "dylora", "oft", "boft")
FAMILIES = tuple(MAKERS)
UNET_TARGETS = (*SD_SCRIPTS_UNET, *CONVOLUTIONS, "upsamplers.0.conv")
PREFIXES = {
    "sd1": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sd2": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sdxl": {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
}
RANK, ALPHA = 4, 7.0


def cases() -> Iterator[tuple[str, str, str]]:
    """Yield (kind, family, layout) of everything that can be written."""
    for kind in KINDS:
        for family in FAMILIES:
            yield kind, family, "kohya"
            if kind not in ("tucker", "oft", "boft"):
                yield kind, family, "diffusers"


def reader(kind: str, layout: str) -> str:
    """Return the program that the file is read by: diffusers wherever it can."""
    if kind in ("lora", "dylora") or (kind == "dora" and layout == "diffusers"):
        return "diffusers"
    return "PEFT" if layout == "diffusers" else "LyCORIS"


def compare(kind: str, family: str, layout: str, folder: Path) -> tuple[float, float]:
    """Return the largest difference of outputs: file against live, live against base."""
    base = folder / family
    if not base.exists():
        make_base(base, family)
    live = load(base, family)
    parts = parts_of(live)
    untrained = outputs(parts)
    for name, module in parts.items():
        torch.manual_seed(3)
        targets = UNET_TARGETS if name == "unet" else SD_SCRIPTS_TEXT_ENCODER
        rank = 8 if kind == "boft" else RANK  # BOFT cannot cut every width in fours
        inject(module, AdapterSpec(kind, rank, ALPHA, 0.0, targets), part=name)
    assert all(torch.equal(x, untrained[key]) for key, x in outputs(parts).items())
    train(parts, steps=5)
    trained = outputs(parts)
    file = folder / f"{kind}-{family}-{layout}.safetensors"
    write_adapter(
        file, parts, layout=layout, dtype=torch.float32, metadata={}, prefixes=PREFIXES[family]
    )
    verify_file(file, parts)
    fresh = load(base, family)
    READERS[reader(kind, layout)](fresh, file)
    return difference(outputs(parts_of(fresh)), trained), difference(trained, untrained)


def make_base(base: Path, family: str) -> None:
    """Write a tiny base; SDXL's with two resnets a block, which its numbers in files rest on."""
    MAKERS[family](base)
    if family == "sdxl":
        config = UNet2DConditionModel.load_config(base / "unet", local_files_only=True)
        torch.manual_seed(0)
        write_part(
            base / "unet", UNet2DConditionModel.from_config({**config, "layers_per_block": 2})
        )


def load(base: Path, family: str) -> Any:
    pipeline = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    extras = {} if family == "sdxl" else {"safety_checker": None, "requires_safety_checker": False}
    return pipeline.from_pretrained(base, local_files_only=True, **extras)


def parts_of(pipeline: Any) -> dict[str, nn.Module]:
    names = ("unet", "text_encoder", "text_encoder_2")
    found = {name: getattr(pipeline, name, None) for name in names}
    return {name: module.eval() for name, module in found.items() if module is not None}


def train(parts: dict[str, nn.Module], *, steps: int) -> None:
    """Move the outputs towards nothing in particular with a real optimizer."""
    parameters = [p for module in parts.values() for p in trainable_parameters(module)]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    for _ in range(steps):
        loss = sum((out - 1).square().mean() for out in _run(parts).values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()


def outputs(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: out.clone() for name, out in _run(parts).items()}


def _run(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return every part's output at fixed inputs."""
    generator = torch.Generator().manual_seed(2)
    unet: Any = parts["unet"]
    tokens = torch.arange(20).reshape(2, 10)
    found = {name: m(tokens).last_hidden_state for name, m in parts.items() if name != "unet"}
    width = unet.config.cross_attention_dim
    context = torch.randn(2, 5, width, generator=generator)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    added = None
    if unet.config.addition_embed_type == "text_time":
        size_width = unet.config.addition_time_embed_dim
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * size_width
        added = {"text_embeds": torch.randn(2, pooled, generator=generator),
                 "time_ids": torch.full((2, 6), 64.0)}  # fmt: skip
    times = torch.tensor([3, 700])
    found["unet"] = unet(noisy, times, context, added_cond_kwargs=added).sample
    return found


def difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    return max(float((one[name] - two[name]).abs().max()) for name in two)


def _by_diffusers(pipeline: Any, file: Path) -> None:
    pipeline.load_lora_weights(file)


def _by_peft(pipeline: Any, file: Path) -> None:
    with safe_open(file, framework="pt") as content:
        fields = json.loads(content.metadata()["lora_adapter_metadata"])
    tensors = load_file(file)
    for name, module in parts_of(pipeline).items():
        own = {k.removeprefix(f"{name}."): v for k, v in fields.items() if k.startswith(f"{name}.")}
        config_type = {"LOHA": LoHaConfig, "LOKR": LoKrConfig}[own.pop("peft_type")]
        own["alpha"] = own.pop("lora_alpha")
        inject_adapter_in_model(config_type(**own), module)
        state = {
            k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")
        }
        result = set_peft_model_state_dict(module, state, adapter_name="default")
        assert not result.unexpected_keys, result.unexpected_keys


def _by_lycoris(pipeline: Any, file: Path) -> None:
    from lycoris.modules import get_module, make_module

    tensors = load_file(file)
    is_sdxl = hasattr(pipeline, "text_encoder_2")
    used = set()
    for part, module in parts_of(pipeline).items():
        for path, layer in list(module.named_modules()):
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            name = flat(part, path, is_sdxl=is_sdxl)
            if not any(key.startswith(f"{name}.") for key in tensors):
                continue
            used |= {key for key in tensors if key.startswith(f"{name}.")}
            kind, weights = get_module(tensors, name)
            with torch.no_grad():
                adapter = make_module(kind, weights, name, layer)
            adapter.eval()
            adapter.apply_to()
            layer.lycoris_adapter = adapter
    assert used == set(tensors)


def flat(part: str, path: str, *, is_sdxl: bool) -> str:
    """Return the name in a kohya file, written down anew from diffusers' own table for SDXL."""
    if part != "unet":
        prefix = {
            "text_encoder": "lora_te1" if is_sdxl else "lora_te",
            "text_encoder_2": "lora_te2",
        }
        return f"{prefix[part]}_text_model_{path.removeprefix('text_model.')}".replace(".", "_")
    if is_sdxl:
        for pattern, replacement in SGM:
            if match := re.match(pattern, path):
                return "lora_unet_" + replacement(*match.groups()).replace(".", "_")
    return f"lora_unet_{path}".replace(".", "_")


RESNET = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
          "conv_shortcut": "skip_connection"}  # fmt: skip
SGM: tuple[tuple[str, Any], ...] = (
    (r"down_blocks\.(\d)\.resnets\.(\d)\.(.*)",
     lambda i, j, r: f"input_blocks.{3 * int(i) + int(j) + 1}.0.{RESNET[r]}"),
    (r"down_blocks\.(\d)\.attentions\.(\d)\.(.*)",
     lambda i, j, r: f"input_blocks.{3 * int(i) + int(j) + 1}.1.{r}"),
    (r"down_blocks\.(\d)\.downsamplers\.0\.conv", lambda i: f"input_blocks.{3 * int(i) + 3}.0.op"),
    (r"mid_block\.resnets\.(\d)\.(.*)", lambda j, r: f"middle_block.{2 * int(j)}.{RESNET[r]}"),
    (r"mid_block\.attentions\.0\.(.*)", lambda r: f"middle_block.1.{r}"),
    (r"up_blocks\.(\d)\.resnets\.(\d)\.(.*)",
     lambda i, j, r: f"output_blocks.{3 * int(i) + int(j)}.0.{RESNET[r]}"),
    (r"up_blocks\.(\d)\.attentions\.(\d)\.(.*)",
     lambda i, j, r: f"output_blocks.{3 * int(i) + int(j)}.1.{r}"),
    (r"up_blocks\.(\d)\.upsamplers\.0\.conv", lambda i: f"output_blocks.{3 * int(i) + 2}.2.conv"),
)  # fmt: skip
READERS = {"diffusers": _by_diffusers, "PEFT": _by_peft, "LyCORIS": _by_lycoris}


def main() -> None:
    print("| kind | family | naming | read by | file against live | live against base |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind, family, layout in cases():
            error, effect = compare(kind, family, layout, Path(folder))
            row = (kind, family, layout, reader(kind, layout), f"{error:.1e}", f"{effect:.2f}")
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
