"""What `flatlm info` prints: an artifact as text for people."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from flatlm.runtime.format.artifact import Artifact

WIDTH = 98  # columns of the header
# key of a layer's report → heading and how a value is shown; shares are 0 … 1
_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "name": ("layer", str),
    "bits": ("bits", str),
    "activation_bits": ("act bits", str),
    "alpha": ("alpha", "{:.2f}".format),
    "threshold": ("threshold", "{:.3g}".format),
    "extra_columns": ("extra columns", "{:.2%}".format),
    "excess": ("excess", "{:.2%}".format),
    "error": ("rel. error", "{:.2e}".format),
    "kl": ("KL", "{:.2e}".format),
}


def describe(artifact: Artifact, more: Mapping[str, str] = MappingProxyType({})) -> str:
    """Header with `more` facts, files, and the table per layer; unknown keys are shown as they are."""
    manifest = artifact.manifest
    facts = {
        "model": manifest.name,
        "path": str(artifact.path),
        "architecture": manifest.architecture,
        "recipe": manifest.recipe,
        "parameters": f"{_number(manifest.parameters) / 1e6:,.1f} M",
        "bits per weight": f"{_number(manifest.bits_per_weight):.2f}",
        "vocabulary": f"{manifest.vocab_size:,}",
        "context": f"{manifest.context_length:,} tokens",
        "size": size_text(sum(entry.size for entry in manifest.files.values())),
        "written by": f"flatlm {manifest.flatlm}, format {manifest.format}",
        **more,
        **{key.replace("_", " "): _plain(value) for key, value in manifest.totals.items()},
        "calibration": _plain(manifest.calibration),
    }
    width = max(map(len, facts))
    lines = [line for key, value in facts.items() for line in _lines(printable(key), printable(value), width)]
    files = [("file", "size", "sha256")]
    files += [(name, size_text(entry.size), entry.sha256[:12]) for name, entry in manifest.files.items()]
    parts = ["\n".join(lines), table(files)]
    if manifest.layers:
        parts.append(table(_layer_rows(manifest.layers)))
    return "\n\n".join(parts)


def _lines(key: str, value: str, width: int) -> list[str]:
    """A fact, its value on as many lines as it takes."""
    parts = textwrap.wrap(value, max(40, WIDTH - width), break_on_hyphens=False) or [""]
    return [f"{key if i == 0 else '':<{width}}  {part}".rstrip() for i, part in enumerate(parts)]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length, the first the heading; the first column to the left, the others to the right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _layer_rows(layers: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    present = dict.fromkeys(key for layer in layers for key in layer)
    keys = [key for key in _COLUMNS if key in present] + [key for key in present if key not in _COLUMNS]
    rows = [[_COLUMNS[key][0] if key in _COLUMNS else key.replace("_", " ") for key in keys]]
    return rows + [[_cell(key, layer.get(key)) for key in keys] for layer in layers]


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key in _COLUMNS and isinstance(value, int | float):
        return _COLUMNS[key][1](_number(value))
    return _plain(value)


def _number(value: Any) -> float:
    """The number itself, if the formats can show it: JSON has integers that no float holds."""
    if isinstance(value, float) or abs(value) <= sys.float_info.max:
        shown: float = value
        return shown
    return math.inf if value > 0 else -math.inf


def _plain(value: Any) -> str:
    """A value of the manifest; of an object its values, each after its key."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key.replace('_', ' ')} {_plain(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def printable(text: str) -> str:
    """With what would steer a terminal (escape sequences, line ends, lone surrogates) written out."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def size_text(size: int) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024  # type: ignore[assignment]
    return f"{size:.2f} GiB"
