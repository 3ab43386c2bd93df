"""The strict layers: imports go downward, and every third-party library has one home.

Reads the import statements of every file, also those inside functions; nothing is imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "loralab"


def module_name(path: Path) -> str:
    """Return a file's dotted name inside the package, e.g. ``data.index``; "" for the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}

# Room -> rooms it may import beside itself. `demo` is the leaf that names the embedded base;
# `demo.scripts` stands for the other files of that folder, which made the base, and
# `demo.evaluation` for what judges its drawings.
SIBLINGS = {"data", "diffusion", "models", "adapters"}
BELOW_APP = {"training", "errors", "files", *SIBLINGS}
ROOMS = {
    "train": {"app", "config", "errors"},
    "cli": {"app", "config", "demo", "errors"},
    "app": {"config", "demo", "demo.evaluation", *BELOW_APP},
    "training": {"errors", "files", *SIBLINGS},
    **{sibling: {"errors", "files"} for sibling in SIBLINGS},
    "config": {"demo", "errors"},
    "demo": set[str](),
    "demo.scripts": {"demo", *BELOW_APP},
    "demo.evaluation": {"demo", "demo.scripts", *BELOW_APP},
    "errors": set[str](),
    "files": {"errors"},
}

# Library -> its homes: a room, or one module or package inside a room.
TENSORS = {"app", "training", "demo.scripts", "demo.evaluation", *SIBLINGS}
HOMES = {
    "torch": TENSORS,
    "numpy": {"data", "models", "training", "demo.scripts"},
    "safetensors": {"data", "models", "adapters", "demo.scripts", "demo.evaluation"},
    "PIL": {"data", "demo.scripts", "demo.evaluation"},
    "pyarrow": {"data"},
    "diffusers": {"models", "demo.scripts"},
    "transformers": {"models", "demo.scripts"},
    "tokenizers": {"models", "demo.scripts"},
    "peft": {"adapters"},
    "lycoris": {"adapters"},
    "xformers": {"models"},
    "huggingface_hub": {"models"},
    "lightning": {"training", "app.build", "app.callbacks"},
    "tensorboard": {"training", "app"},
    "psutil": {"training", "app"},
    "hydra": {"config", "app", "train"},
    "omegaconf": {"config", "app", "train"},
    "yaml": {"config", "app"},
    "rich": {"app", "training.callbacks"},
    "typer": {"cli"},
    "resvg_py": {"demo.scripts"},
}


def room_of(module: str) -> str:
    room, _, inside = module.partition(".")
    if room == "demo" and inside:
        return "demo.evaluation" if inside.startswith("evaluation") else "demo.scripts"
    return room


def imported_module(name: str) -> str:
    """Return the file of ours that a dotted name leads to: the longest part that is a module."""
    module = name.partition(".")[2]
    while module not in FILES:
        module = module.rpartition(".")[0]
    return module


def imported_names(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of everything that a file of `package` imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def violations(source: str, module: str) -> list[str]:
    """Return a sentence for every import of `module` that breaks a layer or a home."""
    is_package = module in FILES and FILES[module].name == "__init__.py"
    package = f"loralab.{module}" if is_package else f"loralab.{module}".rpartition(".")[0]
    room = room_of(module)
    found = []
    for line, name in imported_names(source, package):
        library = name.partition(".")[0]
        if library == "loralab":
            other = room_of(imported_module(name))
            if other not in ROOMS[room] | {room, ""}:
                found.append(f"{module}:{line} imports {name}; {room} may not import {other}")
        elif library not in sys.stdlib_module_names:
            homes = HOMES.get(library, set())
            if not homes & {room, ".".join(module.split(".")[:2])}:
                known = ", ".join(sorted(homes)) or "not chosen: add it to HOMES"
                found.append(f"{module}:{line} imports {name}; the home of {library} is {known}")
    return found


def test_every_file_keeps_the_layers_and_the_homes() -> None:
    sources = {**FILES, "train": ROOT / "train.py"}
    del sources[""]  # the package itself holds a version and nothing else: next test
    found = [
        sentence
        for module, path in sources.items()
        for sentence in violations(path.read_text(encoding="utf-8"), module)
    ]
    assert found == []
    assert {room_of(module) for module in sources} == set(ROOMS), "a room was not seen"
    assert len(sources) >= 60, f"only {len(sources)} files seen"


def test_package_itself_imports_nothing() -> None:
    assert list(imported_names(FILES[""].read_text(encoding="utf-8"), "loralab")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("data.index", "from loralab.models.family import ModelFacts"),
        ("diffusion.objective", "def later():\n    import loralab.training.lr_schedules"),
        ("training.module", "from loralab.config.records import RunConfig"),
        ("training.module", "from loralab import config"),
        ("training.module", "from loralab.app import main"),
        ("app.run", "from loralab.demo.pretrain import main"),
        ("app.run", "from loralab.cli.main import app"),
        ("demo.denoiser", "from loralab.demo.evaluation.content import shapes"),
        ("train", "from loralab.training.lr_schedules import cosine"),
        ("errors", "from loralab.config import parse"),
        ("data.index", "from ..diffusion import noise"),
        ("demo", "from .vae import train_vae"),
        ("demo", "import torch"),
        ("config.records", "import torch"),
        ("models.codec", "from PIL import Image"),
        ("app.preflight", "from PIL import Image"),
        ("training.module", "from diffusers import DDPMScheduler"),
        ("adapters.inject", "import transformers"),
        ("demo.denoiser", "from peft import LoraConfig"),
        ("app.run", "import lightning.pytorch as pl"),
        ("models.registry", "from omegaconf import OmegaConf"),
        ("app.run", "import typer"),
        ("training.module", "from rich.table import Table"),
        ("data.images", "import cv2"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("training.module", "from loralab.diffusion.objective import Objective, LossTerms"),
        ("data.index", "from loralab.errors import DataError\nfrom . import buckets"),
        ("app.build", "import lightning as L\nfrom loralab import __version__, demo"),
        ("config.rules", "from loralab.demo import base_dir"),
        ("training.callbacks.statistics", "from rich.table import Table"),
        ("demo.denoiser", "from .vae import train_vae\nfrom loralab.models import codec"),
        ("demo", "import json\nfrom pathlib import Path"),
        ("cli.sample", "import typer\nfrom loralab.app.exits import exit_codes"),
        ("app.run", "from loralab.demo.evaluation.procedure import evaluate"),
    ],
)
def test_a_permitted_import_is_let_through(module: str, source: str) -> None:
    assert violations(source, module) == []
