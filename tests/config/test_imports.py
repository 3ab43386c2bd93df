"""A misspelt key is answered before torch is loaded: these modules must not import it."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "lightning", "diffusers", "transformers", "peft", "numpy", "PIL")
LIGHT = ("choices", "parse", "records", "rules", "store")


def loaded_by(*modules: str) -> set[str]:
    """Return which heavy libraries a fresh interpreter has loaded after these imports."""
    script = f"import {', '.join(modules)}, sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in result.stdout.split()} & set(HEAVY)


def test_neither_configuration_nor_entry_point_loads_torch() -> None:
    modules = (*(f"loralab.config.{name}" for name in LIGHT), "loralab.app.entry")
    assert loaded_by(*modules) == set()


def test_the_test_would_notice() -> None:
    assert "numpy" in loaded_by("numpy")
