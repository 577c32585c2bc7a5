"""Size against divergence: what an export could have chosen, as a table and a picture."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatlm.kernels_arm.files import open_regular
from flatlm.runtime.errors import BackendError, UsageError

from .passes.bits import Point

PNG = b"\x89PNG\r\n\x1a\n"  # what such a file begins with
ROWS = 16  # of the table
Size = tuple[float, float]  # bytes of the whole model, predicted KL (nats)


def sizes(points: Sequence[Point], fixed: float) -> tuple[Size, ...]:
    """fixed: bytes about which nothing is chosen."""
    return tuple((fixed + point.bytes, point.kl) for point in points)


def table(frontier: Sequence[Size], weights: int, chosen: Size) -> str:
    """Points evenly spread over the sizes, and in its place the one that was chosen."""
    low, high = frontier[0][0], frontier[-1][0]
    rows = []
    for i in range(ROWS):
        wanted = low + (high - low) * i / (ROWS - 1)
        rows.append(min(frontier, key=lambda size: abs(size[0] - wanted)))
    lines = [f"{'MB':>9}{'bits':>7}{'KL':>10}  (predicted; bits of the file per weight)"]
    for size in sorted({*rows, chosen}):
        mark = "  chosen" if size == chosen else ""
        lines.append(f"{size[0] / 1e6:>9.1f}{8 * size[0] / weights:>7.2f}{size[1]:>10.4f}{mark}")
    return "\n".join(lines)


def check(path: Path) -> None:
    """Before the work: BackendError where matplotlib is missing, UsageError where `path` cannot be made."""
    _matplotlib()
    if not path.parent.is_dir():
        raise UsageError(f"--frontier {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"--frontier {path}: this is a folder; name the file to make")
    if os.path.lexists(path) and not _is_picture(path):
        raise UsageError(f"--frontier {path}: this is there and no PNG; name a file to make")


def _is_picture(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(len(PNG)) == PNG
    except OSError:
        return False


def _matplotlib() -> Any:
    try:
        return importlib.import_module("matplotlib")
    except ImportError:
        raise BackendError("--frontier needs matplotlib: pip install flatlm[bench]") from None


def draw(path: Path, frontier: Sequence[Size], chosen: Size, title: str) -> None:
    """Write a PNG."""
    _matplotlib().use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([size / 1e6 for size, _ in frontier], [kl for _, kl in frontier], ".-", markersize=3)
    axes.plot(chosen[0] / 1e6, chosen[1], "o", color="tab:orange", label="chosen")
    axes.set_yscale("log")
    axes.set_xlabel("MB, the whole model")
    axes.set_ylabel("KL to the float model, predicted (nats)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
