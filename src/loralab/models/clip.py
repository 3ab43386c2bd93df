"""A CLIP model of the user's (Radford et al. 2021): how near pictures are to words and pictures.

A folder as transformers writes it. Nothing is fetched, pickles are never read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from loralab.errors import Collector, ModelError, Problem
from loralab.models.components import quiet_loading
from loralab.models.folder import header_complaint

KEY = "result_metrics.clip_path"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WHOLE = "give the whole folder of a CLIP model, such as transformers saves it."


def check_clip(path: str | Path, prompts: Sequence[str] = ()) -> list[str]:
    """Check a folder without reading its weights; return the prompts that it would cut off.

    Raises:
        ModelError: The folder is missing, incomplete or no CLIP model; all problems.
    """
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        _refuse(f"{KEY} is {folder}, which {what}; {WHOLE}")
    problems: list[Problem] = []
    collect = Collector(problems)
    config = collect(_config, folder)
    collect(_check_weights, folder)
    if config is not None:
        collect(_check_pictures, folder, config)
    tokenizer = collect(_tokenizer, folder, config) if config is not None else None
    if problems or tokenizer is None or config is None:
        raise ModelError(*problems)
    room = int(config["text_config"].get("max_position_embeddings", 77))
    return [text for text in prompts if len(tokenizer(text, verbose=False).input_ids) > room]


class ClipJudge:
    """Gives prompts and pictures their places in a CLIP model's space, as vectors of length 1.

    The weights rest on the CPU and are on another device only while they are used.
    """

    def __init__(self, path: str | Path) -> None:
        """Load the model in float32; no random number is drawn from torch's generators.

        Raises:
            ModelError: The folder is incomplete, damaged or no CLIP model.
        """
        check_clip(path)
        folder = Path(path)
        with torch.random.fork_rng(devices=[]):
            self.model = _load(folder)
        self.tokenizer = _tokenizer(folder, _config(folder))
        self.processor = _processor(folder)
        self.device = torch.device("cpu")

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return (B,D) float32 on the CPU; what a text has beyond the model's length is cut off."""
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        return self._embed(
            self.model.get_text_features,
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
        )

    def embed_pictures(self, pictures: Sequence[Tensor]) -> Tensor:
        """Return (B,D) float32 on the CPU of pictures (3,H,W) in [0,1], of any sizes."""
        rows = []
        for picture in pictures:  # one by one: they differ in size, and big models need the room
            pixels = picture.clamp(0, 1).mul(255).round().byte().cpu().numpy()
            prepared = self.processor(images=[pixels], return_tensors="pt")
            rows.append(self._embed(self.model.get_image_features, **prepared))
        return torch.cat(rows)

    @torch.no_grad()
    def _embed(self, features: Any, **inputs: Tensor) -> Tensor:
        try:
            self.model.to(self.device)
            with torch.autocast(self.device.type, enabled=False):
                found = features(**{name: item.to(self.device) for name, item in inputs.items()})
            return normalize(found.pooler_output.float(), dim=-1).cpu()
        finally:
            self.model.to("cpu")


def _load(folder: Path) -> Any:
    model, info = _from_folder(
        CLIPModel,
        folder,
        use_safetensors=True,
        torch_dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that their names come back
    )
    wrong = [*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])]
    if wrong:
        _refuse(
            f"{KEY}: {folder} lacks {len(wrong)} weights of its config.json or has other shapes "
            f"for them, the first is {min(wrong)}; {WHOLE}"
        )
    return model.requires_grad_(False).eval()


def _config(folder: Path) -> dict[str, Any]:
    content = _read(folder / "config.json")
    kind = content.get("model_type")
    if kind != "clip" or not all(
        isinstance(content.get(f"{part}_config"), dict) for part in ("text", "vision")
    ):
        _refuse(
            f"{KEY}: {folder / 'config.json'} is of a model of type {kind}; it must be clip, with "
            "a text_config and a vision_config."
        )
    return content


def _check_weights(folder: Path) -> None:
    names = [WEIGHTS]
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        content = _read(folder / INDEX).get("weight_map")
        shards = content if isinstance(content, dict) else {}
        names = sorted({Path(str(name)).name for name in shards.values()}) or names
    for name in names:
        file = folder / name
        if not file.is_file():
            pickled = (folder / "pytorch_model.bin").is_file()
            why = " and pytorch_model.bin is a pickle, which is never opened" if pickled else ""
            _refuse(f"{KEY}: {file} is missing{why}; {WHOLE}")
        if complaint := header_complaint(file):
            _refuse(f"{KEY}: {file} {complaint}; download or convert it again.")


def _check_pictures(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a preparation of pictures that does not make the squares that the model sees."""
    _read(folder / "preprocessor_config.json")
    crop = _processor(folder).crop_size
    found = (crop["height"], crop["width"]) if crop else None
    wanted = config["vision_config"].get("image_size", 224)
    if found != (wanted, wanted):
        _refuse(
            f"{KEY}: {folder / 'preprocessor_config.json'} cuts pictures to {found}, but the model "
            f"sees {wanted} x {wanted}; both files must come from the same model."
        )


def _processor(folder: Path) -> Any:
    """Return what brings pictures to the model's size and range, by Pillow."""
    return _from_folder(CLIPImageProcessorPil, folder)


def _tokenizer(folder: Path, config: dict[str, Any]) -> Any:
    files = [folder / name for name in ("vocab.json", "merges.txt")]
    if not all(file.is_file() for file in files) and not (folder / "tokenizer.json").is_file():
        _refuse(f"{KEY}: {folder} has no vocab.json and merges.txt, nor tokenizer.json; {WHOLE}")
    tokenizer = _from_folder(CLIPTokenizer, folder)
    size = config["text_config"].get("vocab_size", 49408)
    # Without its files transformers 5 makes a tokenizer of two tokens and says nothing.
    if len(tokenizer) != size:
        _refuse(
            f"{KEY}: {folder} makes a tokenizer of {len(tokenizer)} tokens, but vocab_size is "
            f"{size}; both must come from the same model."
        )
    return tokenizer


def _from_folder(cls: Any, folder: Path, **options: Any) -> Any:
    try:
        with quiet_loading():
            return cls.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # what a broken file causes in the library is not told anywhere
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__
        text = f"{KEY}: {folder} cannot be loaded as {cls.__name__} ({reason}); {WHOLE}"
        raise ModelError(Problem(KEY, text)) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        _refuse(f"{KEY}: {file} is missing; {WHOLE}")
    except (OSError, ValueError) as error:
        _refuse(f"{KEY}: {file} cannot be read as JSON ({error}); restore it.")
    if not isinstance(content, dict):
        _refuse(f"{KEY}: {file} holds no JSON object; restore it.")
    return dict(content)


def _refuse(message: str) -> NoReturn:
    raise ModelError(Problem(KEY, message))
