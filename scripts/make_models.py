"""docs/export.md's table of model types, from the files of export/archs.

python scripts/make_models.py       writes it; tests/test_models.py holds it against the files
"""

from __future__ import annotations

from pathlib import Path

from flatlm.export.model_types import markdown

PAGE = Path(__file__).parent.parent / "docs" / "export.md"
BEGIN, END = "| `model_type` |", "\n\n"


def page(text: str) -> str:
    """The page with the table of today."""
    start = text.index(BEGIN)
    return text[:start] + markdown() + text[text.index(END, start) + 1 :]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
