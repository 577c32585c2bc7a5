"""What an export did, per linear layer and in total; the manifest keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flatlm.runtime.format.graph import Graph, in_body

from .frontier import Size
from .recipe import Recipe

PAPER_SHARE = (
    0.4829  # "directly use 4 bits to achieve 48.29 % of the linear layer calculation" (arXiv 2402.17985)
)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One linear layer."""

    name: str
    bits: int  # of the weights
    activation_bits: int
    rows: int
    columns: int
    alpha: float | None  # smoothing, None: not smoothed
    threshold: float | None  # T of the flattened input, as calibration saw it; None without calibration
    extra_columns: float  # share of columns that second digits add
    double_groups: int  # groups of 4 columns that flatlm's own kernels run twice
    excess: float  # share of weights beyond the 4-bit plane
    error: float | None  # ‖ŷ − y‖² / ‖y‖², y of the float layer on the same inputs, of calibration windows
    kl: float | None  # nats, predicted for this layer alone as it is; None where there was no choice
    experts: int | None = None  # whose rows are all counted in `rows`
    unreached: tuple[int, ...] = ()  # experts to which no calibration token went: to the nearest integers

    @property
    def weights(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Report:
    """A whole export. Shares of work count the multiplications of the layers between embedding and head."""

    recipe: Recipe
    layers: tuple[LayerReport, ...]
    bytes_total: int  # all constants, before file headers
    bytes_body: int  # those of the layers between embedding and head
    frontier: tuple[Size, ...] = ()  # what could have been chosen, where there was a choice
    chosen: Size | None = None  # what was: predicted bytes and KL
    notes: tuple[str, ...] = ()  # on how the source was read
    unsmoothed: tuple[str, ...] = ()  # kinds of layers that read what no scale can be moved out of

    @property
    def body(self) -> list[LayerReport]:
        return [layer for layer in self.layers if in_body(layer.name)]

    @property
    def bits_per_weight(self) -> float:
        """Of the body, everything counted: scales, excess, tables."""
        return 8 * self.bytes_body / max(1, sum(layer.weights for layer in self.body))

    @property
    def extra_columns(self) -> float:
        """Columns that flattening adds, as a share of all columns."""
        columns = sum(layer.columns for layer in self.layers)
        return sum(layer.extra_columns * layer.columns for layer in self.layers) / max(1, columns)

    @property
    def extra_work(self) -> float:
        """Multiplications that flattening adds as columns (onnxruntime), as a share of the plain ones."""
        return self._work(lambda layer: layer.extra_columns)

    @property
    def extra_work_native(self) -> float:
        """The same in flatlm's kernels: a wide channel has its group of 4 run twice, whatever its pieces."""
        return self._work(lambda layer: 4 * layer.double_groups / layer.columns)

    def _work(self, share: Callable[[LayerReport], float]) -> float:
        total = sum(layer.weights for layer in self.layers)
        return sum(share(layer) * layer.weights for layer in self.layers) / max(1, total)

    @property
    def share_low(self) -> float:
        """Share of the body's multiplications with weights and activations both of 4 bits."""
        low = sum(layer.weights for layer in self.body if layer.bits == 4 and layer.activation_bits == 4)
        return low / max(1, sum(layer.weights for layer in self.body))

    @property
    def share_low_weights(self) -> float:
        """Share of the body's weights of 4 bits, whatever the activations."""
        low = sum(layer.weights for layer in self.body if layer.bits == 4)
        return low / max(1, sum(layer.weights for layer in self.body))

    def totals(self) -> dict[str, Any]:
        """For the manifest. `share_4bit_work` follows flatlm's rules: it does not reproduce the paper's."""
        return {
            "bytes": self.bytes_total,
            "body_bits_per_weight": self.bits_per_weight,
            "extra_columns": self.extra_columns,
            "extra_work_columns": self.extra_work,
            "extra_work_native": self.extra_work_native,
            "share_4bit_weights": self.share_low_weights,
            "share_4bit_work": self.share_low,
            "share_4bit_work_paper": PAPER_SHARE,
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"unsmoothed": list(self.unsmoothed)} if self.unsmoothed else {}),
        }

    def rows(self) -> list[dict[str, Any]]:
        """The layers for the manifest; shares are 0 … 1."""
        rows = [dataclasses.asdict(layer) for layer in self.layers]
        of_experts = {"experts": (None,), "unreached": ((),)}  # and what they are without
        return [
            {key: value for key, value in row.items() if value not in of_experts.get(key, ())} for row in rows
        ]

    def table(self) -> str:
        """For people: one line a layer, then the totals."""
        width = max([26, *(len(x.name) + 1 for x in self.layers)])
        lines = [
            f"{'layer':<{width}}{'bits':>5}{'α':>6}{'T':>9}{'extra':>8}{'excess':>8}{'error':>9}{'KL':>9}"
        ]
        for x in self.layers:
            bits = f"{x.bits}/{x.activation_bits}"
            alpha = "-" if x.alpha is None else f"{x.alpha:.2f}"
            kl = "-" if x.kl is None else f"{x.kl:.4f}"
            threshold = "-" if x.threshold is None else f"{x.threshold:.3g}"
            error = "-" if x.error is None else f"{100 * x.error:.3f}%"
            lines.append(
                f"{x.name:<{width}}{bits:>5}{alpha:>6}{threshold:>9}{100 * x.extra_columns:>7.1f}%"
                f"{100 * x.excess:>7.2f}%{error:>9}{kl:>9}"
            )
        lines.append(
            f"body {self.bits_per_weight:.2f} bits per weight, all {self.bytes_total / 1e6:.1f} MB; "
            "flattening adds "
            f"{100 * self.extra_columns:.1f} % columns, {100 * self.extra_work:.1f} % multiplications "
            f"({100 * self.extra_work_native:.1f} % in flatlm's kernels)"
        )
        if self.unsmoothed:
            lines.append(
                f"not smoothed: {', '.join(self.unsmoothed)}; no norm, value or product before them could "
                "take a scale, wide channels alone tame their inputs"
            )
        lines += [_unreached(layer) for layer in self.layers if layer.unreached]
        if self.recipe.low_levels == 7:
            lines.append(
                f"linear-layer work in 4 bits: {100 * self.share_low:.2f} % by flatlm's own rules "
                f"(the paper's abstract: {100 * PAPER_SHARE:.2f} %)"
            )
        return "\n".join(lines)


def _unreached(layer: LayerReport) -> str:
    names = ", ".join(map(str, layer.unreached[:8])) + (", …" if len(layer.unreached) > 8 else "")
    return (
        f"{layer.name}: to {len(layer.unreached)} of {layer.experts} experts ({names}) no calibration token "
        "went, they have the nearest integers"
    )


def sizes_of(graph: Graph) -> tuple[int, int]:
    """Bytes of the constants in all and of those between embedding and head."""
    total = sum(tensor.data.nbytes for tensor in graph.constants.values())
    body = (tensor.data.nbytes for name, tensor in graph.constants.items() if in_body(name))
    return total, sum(body)
