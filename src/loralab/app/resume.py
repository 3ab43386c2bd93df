"""Is the run that is asked for the run that was interrupted?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from loralab.app.folders import CONFIG_FILE, IMAGES_FILE, RunFolder, read_facts, read_state
from loralab.config.parse import as_written, to_plain, walk_options
from loralab.config.records import RunConfig
from loralab.config.store import conf_dir
from loralab.errors import ConfigError, Problem

if TYPE_CHECKING:
    from loralab.app.images import Images

SETTINGS_KEY = "hyper_parameters"  # Lightning's, in checkpoints
_PARTS = {"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "account"}
MOST_NAMED = 5  # changed images; the rest is counted
# What of the recipes may change without changing the result.
_FREE = ("callbacks.", "trainer.log_every_n_steps", "trainer.accelerator", "trainer.profiler")


def resume_problems(config: RunConfig, folder: RunFolder) -> list[Problem]:
    """Return every setting that changes the result and differs from the stored run."""
    stored = _stored_settings(folder) if folder.continued else None
    if stored is None:
        return []
    ours = dict(_flat(to_plain(config)))
    theirs = dict(_flat(stored))
    free = {key for key, item, _ in walk_options(config) if not item.metadata["affects_result"]}
    problems = []
    for key in sorted(ours.keys() | theirs.keys()):
        if key in free or key.startswith(_FREE) or ours.get(key) == theirs.get(key):
            continue
        problems.append(
            Problem(
                key,
                f"{key} is {ours.get(key)!r}, but the interrupted run in {folder.path} has "
                f"{theirs.get(key)!r}; set it back, or start a new run without resume.",
            )
        )
    return problems


def with_stored_settings(raw: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of the run folder that `resume` names, overrides laid over it.

    Args:
        raw: The composed configuration; without a run folder in `resume` it is returned as it is.
        overrides: The command line; a run folder has made every choice of a group already.

    Raises:
        ConfigError: A group is chosen beside a run folder.
    """
    path = Path(str(raw.get("resume"))) / CONFIG_FILE
    if not path.is_file():
        return raw
    stored = OmegaConf.load(path)
    assert isinstance(stored, DictConfig)
    problems, parser = [], OverridesParser.create()
    for text in overrides:
        override = parser.parse_override(text)
        key = override.get_key_element().lstrip("+~")
        if (conf_dir() / key).is_dir():
            sentence = f"{text} stands beside resume={raw.resume}, which brings all its settings."
            problems.append(Problem(key, f"{sentence} Leave it out."))
        else:
            OmegaConf.update(stored, key, override.value(), force_add=True)
    if problems:
        raise ConfigError(*problems)
    return stored


def data_problem(folder: RunFolder, images: Images) -> Problem | None:
    """Return a problem when the images or captions are not those the run began with."""
    stored = read_state(folder.path).get("data_digest") if folder.continued else None
    if stored in (None, images.digest):
        return None
    return Problem(
        "data.image_dir",
        f"data.image_dir: images or captions have changed since the run in {folder.path} began"
        f"{_changed_images(folder.path, images)}; put them back, or start a new run without "
        "resume.",
    )


def _changed_images(folder: Path, images: Images) -> str:
    """Return which images are new, gone or changed, as far as the run folder knows."""
    now, then = images.fingerprints, read_facts(folder / IMAGES_FILE)
    named = [f"{name} is new" for name in now.keys() - then.keys()]
    named += [f"{name} is gone" for name in then.keys() - now.keys()]
    named += [f"{name} has changed" for name in now.keys() & then.keys() if now[name] != then[name]]
    if not then or not named:
        return ""
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return f" ({', '.join(sorted(named)[:MOST_NAMED])}{more})"


def _stored_settings(folder: RunFolder) -> Mapping[Any, Any] | None:
    """Return what the run was begun with: the checkpoint knows, `config.yaml` may be edited."""
    content = None if folder.checkpoint is None else _read_checkpoint(folder.checkpoint, mmap=True)
    if isinstance(content, Mapping) and SETTINGS_KEY in content:
        settings: Mapping[Any, Any] = content[SETTINGS_KEY]
        return settings
    path = folder.path / CONFIG_FILE
    if not path.is_file():
        return None
    stored = as_written(OmegaConf.to_container(OmegaConf.load(path)))
    assert isinstance(stored, Mapping)
    return stored


def _read_checkpoint(path: Path, *, mmap: bool = False) -> object:
    """Return what a checkpoint holds, or None when it cannot be read."""
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, OSError, pickle.UnpicklingError, EOFError, ValueError, LookupError):
        return None


def checkpoint_problem(path: Path) -> Problem | None:
    """Return a problem when a checkpoint cannot be read; it names the newest one that can."""
    from loralab.training.callbacks.checkpoint import checkpoints

    if _is_whole(path):
        return None
    others = [other for other in reversed(checkpoints(path.parent)) if other != path]
    whole = next((other for other in others if _is_whole(other)), None)
    if whole is None:
        remedy = "no other one is whole; start a new run without resume and run_id."
    else:
        remedy = f"set {resume_word(whole)} to continue from the newest one that is whole."
    sentence = f"resume: {path} is damaged or not a checkpoint of loralab; {remedy}"
    return Problem("resume", sentence)


def resume_word(path: Path) -> str:
    """Return the word of a command line that continues from a path, quoted if it has to be."""
    is_plain = re.fullmatch(r"[\w./-]+", str(path))  # a sweep's folders have = in their names
    return f"resume={path}" if is_plain else f"'resume=\"{path}\"'"


def _is_whole(path: Path) -> bool:
    """Tell whether a checkpoint holds all parts, and what its optimizer remembers."""
    content = _read_checkpoint(path) if _sums_are_right(path) else None
    if not isinstance(content, Mapping) or not content.keys() >= _PARTS:
        return False
    match content["optimizer_states"]:
        case [{"state": memory, "param_groups": [*groups]}]:
            remembers = any(group.get("betas") or group.get("momentum") for group in groups)
            return bool(memory) or not remembers
    return False


def _sums_are_right(path: Path) -> bool:
    """Tell whether a checkpoint's bytes are those that were written; torch 2.13 does not look."""
    try:
        with ZipFile(path) as content:
            return content.testzip() is None
    except (BadZipFile, OSError):
        return False


def _flat(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
