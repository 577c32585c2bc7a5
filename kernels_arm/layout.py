"""Packed weights: the order in which the kernels read them, drawn in docs/format.md.

A panel is 16 rows. Inside it, each step of 64 bytes holds 4 columns (INT8) or 8 columns (UINT4) of
all 16 rows, so one 512-bit register (four NEON registers) is one step and lane r of the accumulator
is row r of the panel.

Also the sparse excess of 4-bit weights, and the activation's digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROWS = 16  # rows of a panel: one 512-bit accumulator of int32
STEP = 64  # bytes of a step
COLUMNS = 16  # columns are padded to this, so a kernel never meets half a step
INT4_LOW, INT4_HIGH = -8, 7
MAX_TOTAL = 119  # a total plus the offset 8 must fit int8, which is what onnxruntime multiplies
MAX_GAP = 255


def padded(size: int, multiple: int) -> int:
    """`size` rounded up to a multiple."""
    return -(-size // multiple) * multiple


def offset_of(bits: int) -> int:
    """What is added to a weight before it is stored: UINT4 keeps w + 8."""
    return {8: 0, 4: 8}[bits]


def packed_shape(rows: int, columns: int, bits: int) -> tuple[int, int, int, int, int]:
    """The ONNX shape of a packed weight, in elements."""
    per_step = 4 * (8 // bits)
    return (padded(rows, ROWS) // ROWS, padded(columns, COLUMNS) // per_step, ROWS, 4, 8 // bits)


def pack(weights: np.ndarray, bits: int) -> np.ndarray:
    """Integers [rows, columns] → packed bytes [panels, steps, 64] (int8, or uint8 for 4 bits).

    4-bit values outside −8…7 are clipped: what is beyond is the sparse excess.
    """
    rows, columns = weights.shape
    panels, steps, _, _, halves = packed_shape(rows, columns, bits)
    plane = np.zeros((panels * ROWS, steps * 4 * halves), np.int8)
    low, high = (INT4_LOW, INT4_HIGH) if bits == 4 else (-128, 127)
    plane[:rows, :columns] = np.clip(weights, low, high)
    elements = plane.reshape(panels, ROWS, steps, halves, 4).transpose(0, 2, 1, 4, 3)
    if bits == 8:
        return np.ascontiguousarray(elements).reshape(panels, steps, STEP)
    nibbles = (elements + 8).astype(np.uint8)
    return (nibbles[..., 0] | (nibbles[..., 1] << 4)).reshape(panels, steps, STEP)


def unpack(packed: np.ndarray, rows: int, columns: int, bits: int) -> np.ndarray:
    """Packed bytes → int8 [rows, columns]; the inverse of `pack`."""
    panels, steps, _, _, halves = packed_shape(rows, columns, bits)
    if bits == 8:
        elements = packed.view(np.int8).reshape(panels, steps, ROWS, 4, 1)
    else:
        data = packed.view(np.uint8).reshape(panels, steps, ROWS, 4)
        elements = np.stack([data & 15, data >> 4], axis=-1).astype(np.int8) - np.int8(8)
    plane = elements.transpose(0, 2, 1, 4, 3).reshape(panels * ROWS, steps * 4 * halves)
    return np.ascontiguousarray(plane[:rows, :columns])


def wide_groups(limit: np.ndarray) -> np.ndarray:
    """int32 indices of the 4-column groups with a channel of two digits (limit over 127), even ones first.

    Even groups of 4-bit weights are low nibbles, odd ones high: each kind has a loop of its own. Where all
    groups are wide they stand in order: high digits are then laid out and multiplied as low ones.
    """
    groups = np.unique(np.flatnonzero(limit > 127) // 4)
    if 4 * len(groups) == padded(len(limit), COLUMNS):
        return groups.astype(np.int32)
    return np.concatenate([groups[groups % 2 == 0], groups[groups % 2 == 1]]).astype(np.int32)


def wide_channels(limit: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """int32 [2, wides]: the channels of two digits, and where each stands among the columns of `groups`."""
    channels = np.flatnonzero(limit > 127)
    number = np.zeros(len(limit) // 4 + 1, np.int64)
    number[groups] = np.arange(len(groups))
    return np.stack([channels, 4 * number[channels // 4] + channels % 4]).astype(np.int32)


def high_digits(limit: np.ndarray, groups: np.ndarray) -> int:
    """Bytes of a token's high digits at most: whole `groups` (as `wide_groups` has them) for few tokens,
    channels side by side for many."""
    return max(4 * groups.size, padded(int((limit > 127).sum()), COLUMNS))


def encode_excess(totals: np.ndarray, marks: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Integers [rows, columns] → (delta uint8 [E], total int8 [E]) of those outside −8…7.

    Entries are sorted by position, row · columns_padded + column; fillers bridge gaps over 255 and carry the
    plane's own value, so that scattering them changes nothing. marks: each panel's first weight has an entry,
    and the last of all, so that a panel's can be read without those before (expert_layout.py).
    """
    if np.abs(totals).max(initial=0) > MAX_TOTAL:
        raise ValueError(f"weight totals reach {np.abs(totals).max()}, the format holds ±{MAX_TOTAL}")
    rows, columns = totals.shape
    plane = np.zeros((padded(rows, ROWS), padded(columns, COLUMNS)), np.int8)
    plane[:rows, :columns] = totals
    flat = plane.reshape(-1)
    is_entry = (flat < INT4_LOW) | (flat > INT4_HIGH)
    if marks:
        is_entry[:: ROWS * plane.shape[1]] = is_entry[-1] = True
    outside = np.flatnonzero(is_entry)
    gaps = np.diff(outside, prepend=0)
    fillers = np.maximum(gaps - 1, 0) // MAX_GAP  # a gap of 256 needs one filler, of 255 none
    ends = np.cumsum(fillers + 1) - 1
    delta = np.full(int(ends[-1]) + 1 if ends.size else 0, MAX_GAP, np.uint8)
    delta[ends] = gaps - fillers * MAX_GAP
    return delta, flat[np.cumsum(delta, dtype=np.int64)]


def decode_excess(delta: np.ndarray, value: np.ndarray, rows: int, columns: int) -> ExcessTable:
    """The entries of a padded matrix, fillers included with excess 0."""
    position = np.cumsum(delta, dtype=np.int64)
    if position.size and position[-1] >= rows * columns:
        raise ValueError(f"excess position {position[-1]} lies beyond the matrix")
    starts = np.searchsorted(position, np.arange(rows + 1, dtype=np.int64) * columns)
    total = value.astype(np.int16)
    excess = (total - np.clip(total, INT4_LOW, INT4_HIGH)).astype(np.int8)
    return ExcessTable(starts.astype(np.int32), (position % columns).astype(np.uint16), excess)


@dataclass(frozen=True, slots=True)
class ExcessTable:
    """Sparse excess as the kernels read it: row r has the entries starts[r] … starts[r + 1]."""

    starts: np.ndarray  # int32 [rows + 1]
    columns: np.ndarray  # uint16 [E]
    excess: np.ndarray  # int8 [E], what is added to the plane

    @property
    def rows(self) -> np.ndarray:
        """The row of each entry."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


def totals_of(
    packed: np.ndarray, rows: int, columns: int, bits: int, delta: np.ndarray, value: np.ndarray
) -> np.ndarray:
    """The integer weights int8 [rows, columns] with the excess added: what a kernel multiplies by."""
    weights = unpack(packed, padded(rows, ROWS), padded(columns, COLUMNS), bits)
    if len(delta):
        table = decode_excess(delta, value, *weights.shape)
        weights[table.rows, table.columns] += table.excess
    return np.ascontiguousarray(weights[:rows, :columns])
