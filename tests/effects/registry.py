"""Which configuration keys the effect tests cover: the decorator, and the reader of it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

_Test = TypeVar("_Test", bound=Callable[..., None])


def effect(*keys: str) -> Callable[[_Test], _Test]:
    """Say which keys a test covers: it changes them alone and asserts what that must cause."""
    assert keys, "a test that covers nothing needs no mark"
    return lambda test: test


def registered_effects(folder: Path) -> dict[str, list[str]]:
    """Return the tests of a folder by the key they cover.

    The sources are read, not imported, so the answer does not depend on which tests were chosen
    or on how they are spread over processes.
    """
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for key in _keys(node):
                    found.setdefault(key, []).append(f"{file.name}::{node.name}")
    return found


def _keys(function: ast.FunctionDef) -> Iterator[str]:
    for mark in function.decorator_list:
        if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name):
            keys = mark.args if mark.func.id == "effect" else []
            yield from (ast.literal_eval(key) for key in keys)
