"""Integer layers by the device's own kernels, where this processor has them: 5 times as fast as float32 BLAS.

The integers of a layer all fit in a signed byte, excess included, so they are given to the INT8 product
whatever their bits: the sums are the same. Without kernels `FlatProduct.operation` stands in, off by rounding
only.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np

from flatlm.export.ops.function import Operation
from flatlm.export.passes.flatten import FlatProduct
from flatlm.kernels_arm import cpu, layout, library, ops, records
from flatlm.kernels_arm.team import Team, aligned, default_threads

BATCH = 512  # tokens at a time


def integer_linear(product: FlatProduct) -> tuple[Operation, bool]:
    """What it computes; and whether it keeps all cores busy itself, so that one call runs at a time."""
    kernels = _kernels()
    if kernels is None:
        return product.operation(), False
    return _native(kernels, product), True


@functools.cache
def _kernels() -> library.Library | None:
    tier = cpu.choose().tier
    if tier is None:
        return None
    try:
        return library.load(tier, warnings.warn)
    except library.KernelsUnavailable:
        return None


def _native(kernels: library.Library, product: FlatProduct) -> Operation:
    """A plan of two records, QUANTIZE and PRODUCT, with a thread team of its own."""
    (n, k), keep, flattening = product.integers.shape, list[np.ndarray](), product.flattening
    scale_of_all = None if flattening.by_token else flattening.inverse_scale
    inputs = records.Integers(flattening.limit, flattening.levels, scale_of_all)
    weights = records.Weights(_packed(product.integers), 8, product.scale, product.bias)
    digits = records.digit_buffers(BATCH, [inputs], keep)
    rows, first_out = (records.zeros(keep, shape) for shape in ((BATCH, inputs.columns), (1, weights.rows)))
    table, wanted = np.zeros((BATCH, 4), np.int64), np.arange(BATCH)
    plan = records.table_of([
        records.quantize_record(inputs, records.Rows(rows), digits, keep, by_row=False),
        records.product_record(inputs, weights, first_out, digits, keep),
    ])  # fmt: skip
    state = np.zeros(ops.STEP_WORDS, np.int64)
    state[[ops.STEP_TABLE, ops.STEP_ROWS]] = table.ctypes.data, wanted.ctypes.data
    keep += [table, wanted]
    team = Team(kernels, plan, state, inputs.scratch, default_threads(), keep)

    def run(x: np.ndarray) -> tuple[np.ndarray, ...]:
        flat = x.reshape(-1, k)
        result = np.empty((len(flat), weights.rows), np.float32)
        for start in range(0, len(flat), BATCH):
            part = flat[start : start + BATCH]
            rows[: len(part), :k] = part
            plan[1, ops.P_OUT] = result[start:].ctypes.data
            state[ops.STEP_TOKENS] = state[ops.STEP_LOGITS] = len(part)
            state[ops.STEP_SPANS] = ops.write_spans(table, [(0, len(part), 0)])
            team.step()
        return (result[:, :n].reshape(*x.shape[:-1], n),)

    return run


def _packed(integers: np.ndarray) -> np.ndarray:
    data = layout.pack(integers.astype(np.int8), 8).reshape(-1).view(np.uint8)
    out = aligned(data.size)
    out[:] = data
    return out
