"""A picture of two paired runs: their shares and the difference, with intervals. Needs matplotlib."""

from __future__ import annotations

import importlib
from pathlib import Path

from flatlm.runtime.errors import BackendError
from flatlm.runtime.evaluation.comparison import Paired
from flatlm.runtime.evaluation.intervals import wilson


def draw(path: Path, names: tuple[str, str], paired: Paired) -> None:
    """Write a PNG. BackendError where matplotlib is missing."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        raise BackendError("--png needs matplotlib: pip install flatlm[bench]") from None
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    n = paired.n
    shares = [(paired.both + only) / n for only in (paired.only_a, paired.only_b)]
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(7, 3.2), height_ratios=(2, 1), layout="constrained"
    )
    for row, share in enumerate(shares):
        _point(above, row, share, *wilson(round(share * n), n), "tab:blue")
    above.set_yticks(range(2), [f"A  {names[0]}", f"B  {names[1]}"])
    above.set_ylim(1.6, -0.6)
    above.set_xlabel(f"right, % of {n} items")
    _point(below, 0, paired.difference, paired.low, paired.high, "tab:orange")
    below.axvline(0, color="0.6", linewidth=1)
    below.set_yticks([0], ["B − A"])
    below.set_xlabel(f"points, 95 % intervals; McNemar p = {paired.p:.3g}")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _point(axes: object, row: int, share: float, low: float, high: float, colour: str) -> None:
    error = [[100 * (share - low)], [100 * (high - share)]]
    axes.errorbar(100 * share, row, xerr=error, fmt="o", capsize=4, color=colour)  # type: ignore[attr-defined]
