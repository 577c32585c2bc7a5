"""Runs one operation of the executor on arrays, by a plan of its own."""

from __future__ import annotations

import numpy as np

from flatlm.kernels_arm import cpu, layout, library, lookups, ops
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.team import Team, aligned


def native_library() -> library.Library:
    tier = cpu.choose().tier
    assert tier is not None
    return library.load(tier)


def record(code: int, **fields: int) -> np.ndarray:
    row = np.zeros(ops.FIELDS, np.int64)
    row[0] = code
    for name, value in fields.items():
        row[getattr(ops, name)] = value
    return row


def run(records: list[np.ndarray], segments, scratch: int, threads: int = 1) -> None:
    """One walk over the records for `segments` (slot, rows, past)."""
    table = aligned(8 * ops.FIELDS * len(records)).view(np.int64).reshape(-1, ops.FIELDS)
    table[:] = records
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


def fitted(array: np.ndarray, size: int, dtype) -> np.ndarray:
    out = np.zeros(size, dtype)
    out[: array.size] = array.reshape(-1)
    return out


def linear(x, inverse_scale, limit, weights, bits, scale, bias, threads=1, residual=None) -> np.ndarray:
    """FlatLinear through QUANTIZE and LINEAR: x [m, k], integer weights [n, k] → float32 [m, n].

    inverse_scale None: FlatLinearToken, of 127 levels.
    """
    (m, k), n = x.shape, len(weights)
    kp, np_ = padded(k, 16), padded(n, 16)
    groups = layout.wide_groups(limit)
    keep = {
        "x": np.zeros((m, kp), np.float32),
        "floats": np.array([inverse_scale or 127, 0, k], np.float32),
        "limits": fitted(limit, kp, np.float32),
        "digits": np.zeros(padded(m, 16) * (kp + layout.high_digits(limit)) + lookups.BEYOND, np.int8),
        "shares": fitted(np.float32(127) / limit.astype(np.float32), kp, np.float32),
        "sums": np.zeros(ops.SUM_SLICES * padded(max(m, ops.MOST_SPARSE), 16), np.int32),
        "steps": np.zeros(padded(m, 16), np.float32),
        "rows": np.zeros(ops.MOST_SPARSE * padded(kp + 4 * groups.size, 64) + lookups.BEYOND, np.int8),
        "weights": aligned(layout.pack(weights, bits).nbytes),
        "scale": fitted(scale, np_, np.float32),
        "bias": fitted(bias, np_, np.float32),
        "out": np.zeros((m, np_), np.float32),
    }
    keep["x"][:, :k] = x
    keep["weights"][:] = layout.pack(weights, bits).reshape(-1).view(np.uint8)
    if residual is not None:
        keep["out"][:, :n] = residual
    at = {name: array.ctypes.data for name, array in keep.items()}
    wide = layout.wide_channels(limit, groups)
    extras = {"EXTRAS": groups.size, "GROUPS": groups.ctypes.data, "STEPS": at["steps"]}
    extras |= {"WIDES": wide.shape[1], "WIDE": wide.ctypes.data}
    excess, held = _lookups(weights, bits, np_, kp, lookups.high_places(groups, limit, kp))
    extras["ROWS"] = at["rows"] if excess else 0
    records = [
        record(
            ops.QUANTIZE, Q_KIND=ops.PLAIN, Q_IN=at["x"], Q_IN_STRIDE=4 * kp, Q_COLUMNS=k, Q_PADDED=kp,
            Q_FLOATS=at["floats"], Q_LIMITS=at["limits"], Q_OUT=at["digits"], Q_SUMS=at["sums"],
            Q_SHARES=0 if inverse_scale is not None else at["shares"],
            **{f"Q_{name}": value for name, value in extras.items()},
        ),
        record(
            ops.PRODUCT, P_BITS=bits, P_X=at["digits"], P_SUMS=at["sums"], P_PADDED=kp,
            P_WEIGHTS=at["weights"],
            P_PANELS=np_ // 16, P_SCALE=at["scale"], P_BIAS=at["bias"], P_OUT=at["out"], P_STRIDE=4 * np_,
            P_ADD=int(residual is not None), P_EVENS=int(sum(groups % 2 == 0)), **excess,
            **{f"L_{name}": value for name, value in extras.items()},
        ),
    ]  # fmt: skip
    run(records, [(0, m, 0)], 4096 + 16 * kp * 32, threads)
    del held  # until here the record points into it
    return keep["out"][:, :n]


def _lookups(
    weights: np.ndarray, bits: int, rows: int, columns: int, high: np.ndarray
) -> tuple[dict[str, int], lookups.Lookups | None]:
    delta, value = (
        layout.encode_excess(weights) if bits == 4 else (np.zeros(0, np.uint8), np.zeros(0, np.int8))
    )
    if not delta.size:
        return {}, None
    held = lookups.gather(native_library(), delta, value, rows, columns, high)
    arrays = {"P_STARTS": held.starts, "P_BASES": held.bases, "P_LOOKUPS": held.picks}
    return {name: array.ctypes.data for name, array in arrays.items()}, held
