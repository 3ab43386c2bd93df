"""Tiny but real models and images: random folders from library classes, and captioned PNGs.

Everything is a function of its arguments, so two calls give identical files. Nothing is downloaded.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

MAX_TOKENS = 77
WIDTH = 32  # of a text encoder, hence of the cross-attention
WIDTH_2 = 48  # of SDXL's second text encoder
PROJECTION = 40  # of the pooled text
SIZE_WIDTH = 8  # features of each of the six sizes

COLORS = {
    "red": (200, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 200),
    "yellow": (220, 200, 50),
    "purple": (130, 50, 160),
}
SHAPES = ("circle", "square", "triangle", "stripes")
GROUNDS = {
    "white ground": (245, 245, 245),
    "grey ground": (128, 128, 128),
    "dark ground": (20, 20, 30),
}
SIZES = ((64, 64), (96, 64), (64, 96), (80, 112), (128, 64), (72, 72), (112, 80), (64, 120))
_SD_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
MERGES = """\
r e
re d</w>
b l
u e</w>
bl ue</w>
c i
r c
ci rc
l e</w>
circ le</w>
g r
o u
n d</w>
gr ou
grou nd</w>
s q
a r
sq u
squ ar
squar e</w>
""".splitlines()


def make_tiny_sd1(
    path: Path, *, seed: int = 0, prediction_type: str = "epsilon", vae_factor: int = 8
) -> Path:
    """Write a random SD1 folder of about 1 MB that ``StableDiffusionPipeline`` can load.

    The UNet halves its input once, so picture sides must be multiples of ``2 * vae_factor``.
    """
    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = write_tokenizer(path / "tokenizer")
        write_part(path / "text_encoder", tiny_text_encoder(tokens))
        write_part(path / "unet", tiny_unet())
        write_part(path / "vae", tiny_vae(vae_factor))
    write_json(path / "scheduler" / "scheduler_config.json", scheduler_config(prediction_type))
    write_json(path / "model_index.json", _SD_INDEX)
    return path


def make_tiny_sd2(path: Path, *, seed: int = 0, prediction_type: str = "v_prediction") -> Path:
    """Write a random SD2 folder: linear projections, a GELU text encoder, padding with ``!``."""
    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = write_tokenizer(path / "tokenizer", pad_token="!")
        write_part(path / "text_encoder", tiny_text_encoder(tokens, hidden_act="gelu"))
        write_part(path / "unet", tiny_unet(attention_head_dim=(2, 4), use_linear_projection=True))
        write_part(path / "vae", tiny_vae())
    write_json(path / "scheduler" / "scheduler_config.json", scheduler_config(prediction_type))
    write_json(path / "model_index.json", _SD_INDEX)
    return path


def make_tiny_sdxl(path: Path, *, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Write a random SDXL folder: two text encoders, pooled text and sizes as conditioning."""
    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = write_tokenizer(path / "tokenizer")
        write_tokenizer(path / "tokenizer_2", pad_token="!")
        write_part(path / "text_encoder", tiny_text_encoder(tokens, num_hidden_layers=3))
        write_part(path / "text_encoder_2", tiny_projecting_encoder(tokens))
        write_part(
            path / "unet",
            tiny_unet(
                layers_per_block=2,  # kohya's names of SDXL's blocks count on two
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=(2, 4),
                transformer_layers_per_block=(1, 2),
                cross_attention_dim=WIDTH + WIDTH_2,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=SIZE_WIDTH,
                projection_class_embeddings_input_dim=PROJECTION + 6 * SIZE_WIDTH,
            ),
        )
        write_part(path / "vae", tiny_vae(scaling_factor=0.13025))
    write_json(path / "scheduler" / "scheduler_config.json", scheduler_config(prediction_type))
    write_json(
        path / "model_index.json",
        {
            "_class_name": "StableDiffusionXLPipeline",
            "_diffusers_version": "0.42.1",
            "force_zeros_for_empty_prompt": True,
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    return path


MAKERS = {"sd1": make_tiny_sd1, "sd2": make_tiny_sd2, "sdxl": make_tiny_sdxl}


def make_images(path: Path, *, count: int = 12, seed: int = 0) -> list[Path]:
    """Write ``count`` different PNGs of several aspect ratios, each with a ``.txt`` of tags."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    written = []
    for number in range(count):
        height, width = SIZES[number % len(SIZES)]
        color, shape, ground = (rng.choice(sorted(kind)) for kind in (COLORS, SHAPES, GROUNDS))
        image = Image.new("RGB", (width, height), GROUNDS[ground])
        _draw(image, shape, COLORS[color], margin=rng.randrange(4, 16))
        image.putpixel((0, 0), (number % 256, number // 256, 0))  # no two files are the same
        file = path / f"image_{number:03d}.png"
        image.save(file)
        file.with_suffix(".txt").write_text(f"{color}, {shape}, {ground}\n", encoding="utf-8")
        written.append(file)
    return written


def tiny_unet(**changes: Any) -> Any:
    options: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTH,
    }
    unet: Any = UNet2DConditionModel(**{**options, **changes})
    # Default initialisation nearly silences cross-attention; captions must change the output.
    for name, parameter in unet.named_parameters():
        if ".attn2." in name and parameter.dim() == 2:
            nn.init.normal_(parameter, std=2.0 / parameter.shape[1] ** 0.5)
    return unet


def tiny_text_encoder(vocab_size: int, **changes: Any) -> CLIPTextModel:
    return _lively(CLIPTextModel(_text_config(vocab_size, **changes)))


def tiny_projecting_encoder(vocab_size: int) -> CLIPTextModelWithProjection:
    config = _text_config(
        vocab_size,
        hidden_size=WIDTH_2,
        intermediate_size=2 * WIDTH_2,
        projection_dim=PROJECTION,
        hidden_act="gelu",
    )
    return _lively(CLIPTextModelWithProjection(config))


def _text_config(vocab_size: int, **changes: Any) -> CLIPTextConfig:
    options: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": vocab_size - 1,
    }
    return CLIPTextConfig(**{**options, **changes})


def _lively(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            std = 1.0 if "token_embedding" in name else 0.5 / parameter.shape[1] ** 0.5
            nn.init.normal_(parameter, std=std)
    return model


def tiny_vae(vae_factor: int = 8, *, scaling_factor: float = 0.18215) -> Any:
    num_blocks = vae_factor.bit_length()
    assert vae_factor == 2 ** (num_blocks - 1), "a VAE's factor is a power of two"
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, *[16] * (num_blocks - 1)),
        down_block_types=("DownEncoderBlock2D",) * num_blocks,
        up_block_types=("UpDecoderBlock2D",) * num_blocks,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling_factor,
    )


def scheduler_config(prediction_type: str = "epsilon") -> dict[str, Any]:
    return {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.42.1",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }


def write_tokenizer(folder: Path, *, pad_token: str = "<|endoftext|>") -> int:
    """Write a byte-level BPE tokenizer in CLIP's file layout and return its number of tokens."""
    alphabet = _byte_alphabet()
    words = [
        *alphabet,
        *(letter + "</w>" for letter in alphabet),
        *(merge.replace(" ", "") for merge in MERGES),
    ]
    words += ["<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    merges = "\n".join(["#version: 0.2", *MERGES])
    (folder / "merges.txt").write_text(merges + "\n", encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": MAX_TOKENS,
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": pad_token,
            "unk_token": "<|endoftext|>",
        },
    )
    return len(words)


def write_part(folder: Path, module: Any) -> None:
    """Write one module the way the libraries lay it out: a config and a safetensors file."""
    module.eval().requires_grad_(False)
    if isinstance(module, CLIPTextModel | CLIPTextModelWithProjection):
        module.config.architectures = [type(module).__name__]
        weights, text = "model.safetensors", module.config.to_json_string(use_diff=False)
    else:
        weights, text = "diffusion_pytorch_model.safetensors", module.to_json_string()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text, encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / weights, metadata={"format": "pt"})


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _byte_alphabet() -> list[str]:
    """Return GPT-2's 256 printable stand-ins for the bytes, in byte order of the table."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + number for number in range(256 - len(printable))]
    return [chr(code) for code in printable + others]


def _draw(image: Image.Image, shape: str, color: tuple[int, int, int], *, margin: int) -> None:
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = margin, margin, image.width - margin, image.height - margin
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=color)
    elif shape == "square":
        draw.rectangle((left, top, right, bottom), fill=color)
    elif shape == "triangle":
        draw.polygon([(left, bottom), ((left + right) / 2, top), (right, bottom)], fill=color)
    else:
        for row in range(top, bottom, 12):
            draw.rectangle((left, row, right, row + 5), fill=color)
