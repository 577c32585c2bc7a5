"""Weights of all experts of a layer as one packed matrix, and an expert's weights out of it.

Expert after expert, each in whole panels: rows are padded to 16 in each. The sparse excess of 4-bit weights
is that of the whole matrix, but every panel has an entry at its first weight, whatever that is, and `starts`
says which entry that is: so the kernels read the excess of a panel and no other.

Legend: E experts, n rows and k columns of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from . import layout
from .layout import padded


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """As an artifact holds them; without excess the last three are empty."""

    packed: np.ndarray  # uint8 or int8 [E · panels, steps, 64]
    starts: np.ndarray  # int32 [E · panels + 1]
    delta: np.ndarray  # uint8 [entries], from one entry to the next
    value: np.ndarray  # int8 [entries], the total there


def packed_shape(experts: int, rows: int, columns: int, bits: int) -> tuple[int, int, int, int, int]:
    """The ONNX shape of the packed weight, in elements."""
    return layout.packed_shape(experts * padded(rows, layout.ROWS), columns, bits)


def pack(experts: Iterable[np.ndarray], bits: int) -> PackedExperts:
    """Of the integers [n, k] of each expert, which are asked for one after the other."""
    packed, deltas, values, counts = [], list[np.ndarray](), list[np.ndarray](), [np.zeros(1, np.int64)]
    for integers in experts:
        packed.append(layout.pack(integers, bits))
        if bits != 4:
            continue
        delta, value = layout.encode_excess(_whole_panels(integers), marks=True)
        delta[0] = bool(deltas)  # the expert before ends with an entry
        position = np.cumsum(delta, dtype=np.int64) - delta[0]
        size = layout.ROWS * padded(integers.shape[1], layout.COLUMNS)
        ends = np.searchsorted(position, size * np.arange(1, len(packed[-1]) + 1))
        counts.append(counts[-1][-1] + ends)
        deltas.append(delta)
        values.append(value)
    starts = np.concatenate(counts).astype(np.int32) if deltas else np.zeros(0, np.int32)
    return PackedExperts(
        np.concatenate(packed),
        starts,
        np.concatenate(deltas) if deltas else np.zeros(0, np.uint8),
        np.concatenate(values) if values else np.zeros(0, np.int8),
    )


def _whole_panels(integers: np.ndarray) -> np.ndarray:
    rows, columns = integers.shape
    whole = np.zeros((padded(rows, layout.ROWS), columns), np.int16)
    whole[:rows] = integers
    return whole


def unpack(experts: PackedExperts, number: int, rows: int, columns: int, bits: int) -> np.ndarray:
    """The integer weights int8 [n, k] of one expert, excess included: what a kernel multiplies by."""
    panels = padded(rows, layout.ROWS) // layout.ROWS
    _, steps, _, _, _ = layout.packed_shape(layout.ROWS, columns, bits)
    data = experts.packed.reshape(-1, steps, layout.STEP)[number * panels : (number + 1) * panels]
    if not experts.starts.size:
        none = np.zeros(0, np.uint8), np.zeros(0, np.int8)
        return layout.totals_of(data, rows, columns, bits, *none)
    own = slice(experts.starts[number * panels], experts.starts[(number + 1) * panels])
    delta = experts.delta[own].copy()
    delta[0] = 0
    return layout.totals_of(data, rows, columns, bits, delta, experts.value[own])
