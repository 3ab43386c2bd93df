"""The generated field reference."""

from pathlib import Path

from loralab.app.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_docs_config_md_is_what_make_docs_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make docs`"
