"""Records filled from arrays: what a quantization is, what a product is, and the buffers between the two.

A record is int64 [ops.FIELDS], whose fields ops.py names: addresses, counts, strides in bytes. It does not
hold what it points to. Functions here append those arrays to the caller's list `keep`, which must live as
long as the record is run.

Legend: m tokens, k inputs, n outputs; k and n are padded to 16.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from . import layout, lookups, ops
from .layout import padded
from .team import aligned

Keep = list[np.ndarray]


# ---------------------------------------------------------------------------------------- fields and arrays
def record(code: int, **fields: int) -> np.ndarray:
    """int64 [FIELDS] with these fields of ops.py, the others 0."""
    row = np.zeros(ops.FIELDS, np.int64)
    row[0] = code
    for name, value in fields.items():
        row[getattr(ops, name)] = value
    return row


def table_of(records: list[np.ndarray]) -> np.ndarray:
    """int64 [count, FIELDS] as a team runs it."""
    table = aligned(ops.RECORD * len(records)).view(np.int64).reshape(-1, ops.FIELDS)
    table[:] = records
    return table


def zeros(keep: Keep, shape: tuple[int, ...], dtype=np.float32) -> np.ndarray:
    """A buffer on a cache line."""
    array = aligned(int(np.prod(shape)) * np.dtype(dtype).itemsize).view(dtype).reshape(shape)
    keep.append(array)
    return array


def held(keep: Keep, array: np.ndarray, dtype, size: int | None = None) -> int:
    """The address of a constant, copied only if its type must change or zeros must follow it up to `size`."""
    array = np.ascontiguousarray(array, dtype).reshape(-1)
    if size is not None and array.size != size:
        array = np.concatenate([array, np.zeros(size - array.size, dtype)])
    keep.append(array)
    return array.ctypes.data


# ------------------------------------------------------------------------------------------ what a product is
@dataclass(frozen=True)
class Integers:
    """How the inputs of a product become integers: of FlatLinear, or of FlatLinearToken (docs/format.md)."""

    limit: np.ndarray  # float32 [k], the largest |X| of a channel; above 127 it has two digits
    levels: int  # of a token's own step
    inverse_scale: float | np.floating | None  # one over the step; None: each token has its own

    @cached_property
    def columns(self) -> int:
        """k padded."""
        return padded(len(self.limit), layout.COLUMNS)

    @cached_property
    def groups(self) -> np.ndarray:
        """int32 [extras], the 4-column groups with a channel of two digits, even ones first."""
        return layout.wide_groups(self.limit)

    @cached_property
    def wide(self) -> np.ndarray:
        """int32 [2, wides], the channels of two digits and their places among the columns of the groups."""
        return layout.wide_channels(self.limit, self.groups)

    @property
    def digits(self) -> int:
        """Bytes of a token's digits at most."""
        return self.columns + layout.high_digits(self.limit, self.groups)

    @property
    def scratch(self) -> int:
        """Bytes that a thread needs."""
        return ops.product_scratch(self.columns, self.wide.shape[1])

    def fields(self, prefix: str, keep: Keep) -> dict[str, int]:
        """Those that both records have, of Q_… or P_…."""
        fields = {
            "PADDED": self.columns, "EXTRAS": self.groups.size, "GROUPS": held(keep, self.groups, np.int32),
            "WIDES": self.wide.shape[1], "WIDE": held(keep, self.wide, np.int32),
        }  # fmt: skip
        return {f"{prefix}_{name}": value for name, value in fields.items()}


@dataclass(frozen=True)
class Rows:
    """The float32 rows that are quantized, [m, stride / 4], and what is done to one first."""

    source: np.ndarray
    kind: int = ops.PLAIN  # or NORM, ACTED, or GATED, whose rows are gate and up side by side
    epsilon: float = 0.0  # of a norm
    weight: np.ndarray | None = None  # float32 [k], of a norm
    act: int = ops.SILU  # the activation
    numbers: tuple[float, ...] = ()  # of the activation


@dataclass(frozen=True)
class Weights:
    """The weights of a product [n, k], packed, and what makes outputs of its sums."""

    packed: np.ndarray  # as `layout.pack` has them; used where they are
    bits: int
    scale: np.ndarray  # float32 [n]
    bias: np.ndarray  # float32 [n]
    excess: lookups.Lookups | None = None

    @property
    def rows(self) -> int:
        """n padded."""
        return padded(self.scale.size, layout.ROWS)


@dataclass(frozen=True)
class Digits:
    """Where quantizations leave a step's integers for the products after them: addresses."""

    low_high: int  # int8, tile after tile
    sums: int  # int32 [m], or [m, SUM_SLICES] of few tokens
    steps: int  # float32 [m]
    by_row: int  # int8, a few tokens' digits row by row, for sparse excess


def digit_buffers(tokens: int, products: Iterable[Integers], keep: Keep) -> Digits:
    """Buffers that all these products of up to `tokens` tokens can share."""
    rows, row = padded(tokens, 16), padded(max((each.digits for each in products), default=0), 64)
    low_high, by_row = (zeros(keep, (n * row + lookups.BEYOND,), np.int8) for n in (rows, ops.MOST_SPARSE))
    sums = zeros(keep, (max(rows, ops.MOST_SPARSE * ops.SUM_SLICES),), np.int32)
    steps = zeros(keep, (rows,))
    return Digits(*(array.ctypes.data for array in (low_high, sums, steps, by_row)))


# ------------------------------------------------------------------------------------------------ the records
def quantize_record(
    integers: Integers, rows: Rows, digits: Digits, keep: Keep, *, by_row: bool, last: bool = False
) -> np.ndarray:
    """QUANTIZE. by_row: a product with sparse excess follows; last: only the rows whose logits are wanted."""
    by_token, k = integers.inverse_scale is None, len(integers.limit)
    factor = np.float32(integers.levels if by_token else integers.inverse_scale)
    floats = np.array([factor, rows.epsilon, k, *rows.numbers], np.float32)
    shares = np.float32(integers.levels) / np.asarray(integers.limit, np.float32)
    weight = 0 if rows.weight is None else held(keep, rows.weight, np.float32, integers.columns)
    keep.append(rows.source)
    return record(
        ops.QUANTIZE, Q_KIND=rows.kind, Q_ACT=rows.act, Q_IN=rows.source.ctypes.data,
        Q_IN_STRIDE=rows.source.strides[0], Q_COLUMNS=k, Q_WEIGHT=weight,
        Q_FLOATS=held(keep, floats, np.float32),
        Q_LIMITS=held(keep, integers.limit, np.float32, integers.columns),
        Q_SHARES=held(keep, shares, np.float32, integers.columns) if by_token else 0,
        Q_OUT=digits.low_high, Q_SUMS=digits.sums, Q_STEPS=digits.steps,
        Q_ROWS=digits.by_row if by_row else 0, Q_LAST=int(last), **integers.fields("Q", keep),
    )  # fmt: skip


def product_record(
    integers: Integers,
    weights: Weights,
    out: np.ndarray,
    digits: Digits,
    keep: Keep,
    *,
    add: bool = False,
    last: bool = False,
) -> np.ndarray:
    """PRODUCT of the digits, to out float32 [m, stride / 4] or added to what is there. last: as above."""
    keep += [weights.packed, out]
    sparse: dict[str, int] = {}
    if excess := weights.excess:
        sparse = {
            "P_STARTS": held(keep, excess.starts, np.int32), "P_BASES": held(keep, excess.bases, np.uint16),
            "P_LOOKUPS": held(keep, excess.picks, np.uint8), "P_EXCESS_BYTES": excess.nbytes,
            "P_ROWS": digits.by_row,
        }  # fmt: skip
    return record(
        ops.PRODUCT, P_BITS=weights.bits, P_WEIGHTS=weights.packed.ctypes.data,
        P_PANELS=weights.rows // layout.ROWS, P_SCALE=held(keep, weights.scale, np.float32, weights.rows),
        P_BIAS=held(keep, weights.bias, np.float32, weights.rows), P_X=digits.low_high, P_SUMS=digits.sums,
        P_STEPS=digits.steps, P_OUT=out.ctypes.data, P_STRIDE=out.strides[0], P_ADD=int(add),
        P_LAST=int(last), P_EVENS=int(sum(integers.groups % 2 == 0)), **integers.fields("P", keep), **sparse,
    )  # fmt: skip
