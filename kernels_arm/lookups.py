"""The sparse excess of a 4-bit weight, from the artifact's bytes to the lookups that the kernels add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import layout, ops
from .library import Library

BEYOND = 256  # bytes after the last token's digits that a lookup may read: the largest window


@dataclass(frozen=True, slots=True)
class Lookups:
    """What `excess.py` reads. Panel p has the low lookups starts[2p] … starts[2p + 1], then the high ones."""

    starts: np.ndarray  # int32 [2 · panels + 1]
    bases: np.ndarray  # uint16 [L]
    picks: np.ndarray  # uint8 [L, 128]: 64 picks, 64 values

    @property
    def nbytes(self) -> int:
        return self.starts.nbytes + self.bases.nbytes + self.picks.nbytes


def high_places(groups: np.ndarray, limit: np.ndarray, columns: int) -> np.ndarray:
    """int32 [columns]: where a token's row has the column's high digit, 0 if nowhere. All 0 if all groups are
    wide: then the low digits' lookups serve the high ones.

    groups: int32 [extras], the 4-column groups with a flattened channel; limit: float [k], above 127 there.
    """
    if 4 * len(groups) == columns:
        return np.zeros(columns, np.int32)
    places = np.zeros((columns // 4, 4), np.int32)
    places[groups] = columns + np.arange(4 * len(groups), dtype=np.int32).reshape(-1, 4)
    flat = places.reshape(-1)
    flat[: len(limit)][limit <= 127] = 0
    return flat


def of_product(
    library: Library,
    delta: np.ndarray,
    value: np.ndarray,
    rows: int,
    groups: np.ndarray,
    limit: np.ndarray,
) -> Lookups | None:
    """The excess (delta uint8 [E], value int8 [E]) of weights [rows, k] for inputs of limit float [k], whose
    groups are int32 [extras]; None where there is none."""
    if not delta.size:
        return None
    columns = layout.padded(len(limit), layout.COLUMNS)
    high = high_places(groups, limit, columns)
    return gather(library, delta, value, layout.padded(rows, layout.ROWS), columns, high)


def gather(
    library: Library, delta: np.ndarray, value: np.ndarray, rows: int, columns: int, high: np.ndarray
) -> Lookups:
    """delta uint8 [E], value int8 [E] of a matrix whose padded sizes are `rows` and `columns`."""
    panels = rows // layout.ROWS
    starts = np.zeros(2 * panels + 1, np.int32)
    scratch = np.zeros(32 + 2 * layout.ROWS * columns, np.int32)
    inputs = [np.ascontiguousarray(delta), np.ascontiguousarray(value), np.ascontiguousarray(high, np.int32)]
    job = np.zeros(ops.JOB_WORDS, np.int64)
    job[[ops.J_DELTA, ops.J_VALUE, ops.J_HIGH]] = [array.ctypes.data for array in inputs]
    job[[ops.J_STARTS, ops.J_SCRATCH]] = starts.ctypes.data, scratch.ctypes.data
    job[[ops.J_ENTRIES, ops.J_COLUMNS, ops.J_PANELS]] = len(delta), columns, panels
    count = library.gather(job.ctypes.data)
    if count < 0:
        raise ValueError(f"sparse excess lies beyond the matrix of {rows} x {columns}")
    bases, picks = np.empty(count, np.uint16), np.empty((count, ops.LOOKUP), np.uint8)
    job[[ops.J_BASES, ops.J_LOOKUPS]] = bases.ctypes.data, picks.ctypes.data
    if count:
        library.gather(job.ctypes.data)
    return Lookups(starts, bases, picks)
