"""Integer layers by the device's own kernels, where this processor has them: 5 times as fast as float32 BLAS.

The integers of a layer all fit in a signed byte, excess included, so they are given to the INT8 product
whatever their bits: the sums are the same. Without kernels `flatten.operation` stands in, off by rounding
only.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np

from flatlm.export.execute import Operation
from flatlm.export.passes.flatten import Flattening, operation, output_scale
from flatlm.kernels_arm import cpu, layout, library, lookups, ops
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.team import Team, aligned, default_threads

BATCH = 512  # tokens at a time


def integer_linear(
    integers: np.ndarray, steps: np.ndarray, bias: np.ndarray, flattening: Flattening
) -> tuple[Operation, bool]:
    """As `flatten.operation`; and whether it keeps all cores busy itself, so that one call runs at a time."""
    kernels = _kernels()
    if kernels is None:
        return operation(integers.astype(np.float32), steps, bias, flattening), False
    return _native(kernels, integers, output_scale(steps, flattening), bias, flattening), True


@functools.cache
def _kernels() -> library.Library | None:
    tier = cpu.choose().tier
    if tier is None:
        return None
    try:
        return library.load(tier, warnings.warn)
    except library.KernelsUnavailable:
        return None


def _native(
    kernels: library.Library,
    integers: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    flattening: Flattening,
) -> Operation:
    """A plan of two records, QUANTIZE and LINEAR, with a thread team of its own."""
    (n, k), columns, rows = integers.shape, padded(integers.shape[1], 16), padded(len(integers), 16)
    limit, levels = flattening.limit, np.float32(flattening.levels)
    groups = layout.wide_groups(limit)
    wide = layout.wide_channels(limit, groups)
    held = {
        "x": np.zeros((BATCH, columns), np.float32),
        "floats": np.array([levels if flattening.by_token else flattening.inverse_scale, 0, k], np.float32),
        "limits": _fitted(limit, columns),
        "shares": _fitted(levels / limit, columns),
        "digits": aligned(BATCH * (columns + layout.high_digits(limit)) + lookups.BEYOND),
        "sums": np.zeros(BATCH, np.int32),
        "steps": np.zeros(BATCH, np.float32),
        "weights": _packed(integers),
        "scale": _fitted(scale, rows),
        "bias": _fitted(bias, rows),
        "groups": groups,
        "wide": wide,
        "table": np.zeros((BATCH, 4), np.int64),
        "wanted": np.arange(BATCH),
    }
    at = {name: array.ctypes.data for name, array in held.items()}
    records = aligned(2 * 8 * ops.FIELDS).view(np.int64).reshape(2, ops.FIELDS)
    shared = {"EXTRAS": groups.size, "GROUPS": at["groups"], "STEPS": at["steps"]}
    shared |= {"WIDES": wide.shape[1], "WIDE": at["wide"]}
    _fill(
        records[0], ops.QUANTIZE, Q_KIND=ops.PLAIN, Q_IN=at["x"], Q_IN_STRIDE=4 * columns, Q_COLUMNS=k,
        Q_PADDED=columns, Q_FLOATS=at["floats"], Q_LIMITS=at["limits"], Q_OUT=at["digits"], Q_SUMS=at["sums"],
        Q_SHARES=at["shares"] if flattening.by_token else 0,
        **{f"Q_{name}": value for name, value in shared.items()},
    )  # fmt: skip
    _fill(
        records[1], ops.PRODUCT, P_BITS=8, P_X=at["digits"], P_SUMS=at["sums"], P_PADDED=columns,
        P_WEIGHTS=at["weights"], P_PANELS=rows // 16, P_SCALE=at["scale"], P_BIAS=at["bias"],
        P_STRIDE=4 * rows, P_EVENS=int(sum(groups % 2 == 0)),
        **{f"L_{name}": value for name, value in shared.items()},
    )  # fmt: skip
    state = np.zeros(ops.STEP_WORDS, np.int64)
    state[[ops.STEP_TABLE, ops.STEP_ROWS]] = at["table"], at["wanted"]
    scratch = ops.product_scratch(columns, wide.shape[1])
    team = Team(kernels, records, state, scratch, default_threads())

    def run(x: np.ndarray) -> tuple[np.ndarray, ...]:
        flat = x.reshape(-1, k)
        result = np.empty((len(flat), rows), np.float32)
        for start in range(0, len(flat), BATCH):
            part = flat[start : start + BATCH]
            held["x"][: len(part), :k] = part
            records[1, ops.P_OUT] = result[start:].ctypes.data
            state[ops.STEP_TOKENS] = state[ops.STEP_LOGITS] = len(part)
            state[ops.STEP_SPANS] = ops.write_spans(held["table"], [(0, len(part), 0)])
            team.step()
        return (result[:, :n].reshape(*x.shape[:-1], n),)

    return run


def _fill(record: np.ndarray, code: int, **fields: int) -> None:
    record[0] = code
    for name, value in fields.items():
        record[getattr(ops, name)] = value


def _fitted(array: np.ndarray, size: int) -> np.ndarray:
    out = np.zeros(size, np.float32)
    out[: array.size] = array.reshape(-1)
    return out


def _packed(integers: np.ndarray) -> np.ndarray:
    data = layout.pack(integers.astype(np.int8), 8).reshape(-1).view(np.uint8)
    out = aligned(data.size)
    out[:] = data
    return out
