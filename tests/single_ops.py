"""Runs one operation of the executor on arrays, by a plan of its own."""

from __future__ import annotations

import numpy as np

from flatlm.kernels_arm import cpu, layout, library, lookups, ops
from flatlm.kernels_arm.records import (
    Integers,
    Rows,
    Weights,
    digit_buffers,
    product_record,
    quantize_record,
    table_of,
    zeros,
)
from flatlm.kernels_arm.team import Team, aligned


def native_library() -> library.Library:
    tier = cpu.choose().tier
    assert tier is not None
    return library.load(tier)


def run(records: list[np.ndarray], segments, scratch: int, threads: int = 1) -> None:
    """One walk over the records for `segments` (slot, rows, past)."""
    table = table_of(records)
    state, held = step_words(segments)
    team = Team(native_library(), table, state, scratch, threads)
    team.step()
    team.close()
    del held


def step_words(segments) -> tuple[np.ndarray, list[np.ndarray]]:
    """The state of a step whose every row is wanted, and what it points to."""
    tokens = sum(rows for _, rows, _ in segments)
    table, wanted, state = (
        np.zeros((tokens, 4), np.int64),
        np.arange(tokens),
        np.zeros(ops.STEP_WORDS, np.int64),
    )
    state[ops.STEP_TOKENS] = state[ops.STEP_LOGITS] = tokens
    state[ops.STEP_SPANS] = ops.write_spans(table, segments)
    state[[ops.STEP_TABLE, ops.STEP_ROWS]] = table.ctypes.data, wanted.ctypes.data
    return state, [table, wanted]


def linear(x, inverse_scale, limit, weights, bits, scale, bias, threads=1, residual=None) -> np.ndarray:
    """FlatLinear through QUANTIZE and PRODUCT: x [m, k], integer weights [n, k] → float32 [m, n].

    inverse_scale None: FlatLinearToken, of 127 levels.
    """
    (m, k), n, keep = x.shape, len(weights), list[np.ndarray]()
    integers = Integers(limit, 127, inverse_scale)
    excess = _lookups(weights, integers) if bits == 4 else None
    packed = Weights(_aligned(layout.pack(weights, bits)), bits, scale, bias, excess)
    rows, out = zeros(keep, (m, integers.columns)), zeros(keep, (m, packed.rows))
    rows[:, :k] = x
    if residual is not None:
        out[:, :n] = residual
    digits = digit_buffers(m, [integers], keep)
    records = [
        quantize_record(integers, Rows(rows), digits, keep, by_row=excess is not None),
        product_record(integers, packed, out, digits, keep, add=residual is not None),
    ]
    run(records, [(0, m, 0)], integers.scratch, threads)
    return out[:, :n]


def _lookups(weights: np.ndarray, integers: Integers) -> lookups.Lookups | None:
    delta, value = layout.encode_excess(weights)
    sizes = len(weights), integers.groups, integers.limit
    return lookups.of_product(native_library(), delta, value, *sizes)


def _aligned(packed: np.ndarray) -> np.ndarray:
    out = aligned(packed.nbytes)
    out[:] = packed.reshape(-1).view(np.uint8)
    return out
