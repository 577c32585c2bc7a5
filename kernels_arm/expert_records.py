"""Records of routing (route.py) and of the products of chosen experts (experts.py), and their buffers.

Legend: m tokens, E experts, K of them a token, k inputs, n outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from . import layout, lookups, ops
from .layout import padded
from .records import Digits, Integers, Keep, Rows, held, quantize_record, record, zeros

MOST_READY = 16  # rows of a tile of many tokens, whatever the tier


@dataclass(frozen=True)
class Choice:
    """How a token's experts are chosen: the options of Route."""

    experts: int
    kept: int
    kind: str  # of ops.KINDS
    select: np.ndarray | None = None  # float32 [E]
    normalize: bool = True
    scale: float = 1.0
    floor: float = 0.0
    groups: int = 1
    keep: int = 1

    @property
    def scratch(self) -> int:
        """Bytes that a thread needs."""
        return 3 * 4 * padded(self.experts, layout.ROWS)

    def table(self, tokens: int) -> int:
        """int32 words of the choices of a step of up to so many tokens."""
        return ops.choice_words(self.experts, self.kept * tokens)


def route_records(
    choice: Choice, logits: np.ndarray, table: np.ndarray, shares: np.ndarray, keep: Keep
) -> list[np.ndarray]:
    """ROUTE and SORT: logits float32 [m, E padded] → table int32 [words], shares float32 [m, K padded]."""
    keep += [logits, table, shares]
    select = choice.select
    fields = {
        "C_LOGITS": logits.ctypes.data, "C_STRIDE": logits.strides[0], "C_EXPERTS": choice.experts,
        "C_KEPT": choice.kept, "C_KIND": ops.KINDS[choice.kind], "C_NORMALIZE": int(choice.normalize),
        "C_GROUPS": choice.groups, "C_KEEP": choice.keep,
        "C_SELECT": 0 if select is None else held(
            keep, select, np.float32, padded(choice.experts, layout.ROWS)
        ),
        "C_FLOATS": held(keep, np.array([choice.scale, choice.floor]), np.float32),
        "C_SHARES": shares.ctypes.data, "C_SHARES_STRIDE": shares.strides[0], "C_TABLE": table.ctypes.data,
        "C_PAIRS": choice.kept * len(shares),
    }  # fmt: skip
    # the table's first words say where its parts are: they stand there before the first step
    table.reshape(-1)[2:4] = choice.experts, fields["C_PAIRS"]
    return [record(ops.ROUTE, **fields), record(ops.SORT, **fields)]


@dataclass(frozen=True)
class ExpertWeights:
    """The weights [E, n, k] of a layer's experts, packed, and what makes outputs of their sums."""

    packed: np.ndarray  # as expert_layout.py has them; used where they are
    bits: int
    scale: np.ndarray  # float32 [E, n]
    bias: np.ndarray  # float32 [E, n]
    starts: np.ndarray  # int32 [E · panels + 1], of the entries of each panel; empty: no excess
    delta: np.ndarray  # uint8 [entries]
    value: np.ndarray  # int8 [entries]

    @property
    def panels(self) -> int:
        """Of one expert."""
        return padded(self.scale.shape[1], layout.ROWS) // layout.ROWS


@dataclass(frozen=True)
class ExpertDigits:
    """Where quantizations leave the integers of the rows of experts: addresses."""

    rows: int  # int8 [rows, digits of a row rounded up to 64]
    sums: int  # int32 [rows]
    steps: int  # float32 [rows]
    tiles: int  # of many rows


def expert_digits(rows: int, products: Iterable[Integers], experts: int, keep: Keep) -> ExpertDigits:
    """Buffers that all these products of up to `rows` rows in all, and of so many experts, can share."""
    row = max(padded(each.digits, 64) for each in products)
    in_tiles = rows + MOST_READY * min(experts, rows)  # an expert's last tile may be empty but for one
    digits, tiles = zeros(keep, (rows * row,), np.int8), zeros(keep, (in_tiles * (row + 8),), np.int8)
    sums, steps = zeros(keep, (rows,), np.int32), zeros(keep, (rows,))
    return ExpertDigits(*(array.ctypes.data for array in (digits, sums, steps, tiles)))


def expert_records(
    integers: Integers,
    weights: ExpertWeights,
    rows: Rows,
    table: np.ndarray,
    out: np.ndarray,
    digits: ExpertDigits,
    keep: Keep,
    *,
    each: int,
    spread: int,
) -> list[np.ndarray]:
    """QUANTIZE_ROWS, PACK and EXPERTS, to out float32 [places, n padded].

    each: rows a token has in `rows`; spread: K where one row of a token goes to all its experts, else 0.
    """
    places = Digits(digits.rows, digits.sums, digits.steps, 0)
    quantize = quantize_record(integers, rows, places, keep, by_row=False)
    quantize[0], quantize[ops.Q_EACH] = ops.QUANTIZE_ROWS, each
    keep += [weights.packed, out, table]
    excess: dict[str, int] = {}
    if weights.starts.size:
        excess = {
            "P_STARTS": held(keep, weights.starts, np.int32), "X_DELTA": held(keep, weights.delta, np.uint8),
            "X_VALUE": held(keep, weights.value, np.int8),
        }  # fmt: skip
    high = lookups.high_places(integers.groups, integers.limit, integers.columns)
    fields = {
        "P_BITS": weights.bits, "P_WEIGHTS": weights.packed.ctypes.data, "P_PANELS": weights.panels,
        "P_SCALE": _by_panel(keep, weights.scale), "P_BIAS": _by_panel(keep, weights.bias),
        "P_ROWS": digits.rows, "P_SUMS": digits.sums, "P_STEPS": digits.steps, "P_X": digits.tiles,
        "P_OUT": out.ctypes.data, "P_STRIDE": out.strides[0], "X_TABLE": table.ctypes.data, "X_EACH": spread,
        "X_HIGH": held(keep, high, np.int32), "P_EVENS": int(sum(integers.groups % 2 == 0)),
        **integers.fields("P", keep), **excess,
    }  # fmt: skip
    return [quantize, record(ops.PACK, **fields), record(ops.EXPERTS, **fields)]


def _by_panel(keep: Keep, values: np.ndarray) -> int:
    """float32 [E, n] with zeros after each expert's; as they are where there is nothing to add."""
    beyond = padded(values.shape[1], layout.ROWS) - values.shape[1]
    return held(keep, np.pad(values, ((0, 0), (0, beyond))) if beyond else values, np.float32)


def sum_record(
    shares: np.ndarray,
    rows: np.ndarray,
    table: np.ndarray,
    out: np.ndarray,
    columns: int,
    kept: int,
    keep: Keep,
) -> np.ndarray:
    """EXPERT_SUM of rows by place, to out float32 [m, columns padded]."""
    keep += [shares, rows, table, out]
    return record(
        ops.EXPERT_SUM, S_SHARES=shares.ctypes.data, S_SHARES_STRIDE=shares.strides[0],
        S_ROWS=rows.ctypes.data, S_ROWS_STRIDE=rows.strides[0], S_COLUMNS=columns, S_KEPT=kept,
        S_TABLE=table.ctypes.data, S_OUT=out.ctypes.data, S_OUT_STRIDE=out.strides[0],
    )  # fmt: skip
