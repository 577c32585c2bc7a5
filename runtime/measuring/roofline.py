"""Speeds beside what the machine can do at most: bytes read per second, and integer operations per second.

The probes run before and after every repetition, since a machine may change between two
(kernels_arm/probes.py): a share is the median over the repetitions at whose ends they agreed.

Writing a token reads every weight once, so its bound is memory; reading a prompt multiplies every weight with
every token, so its bound is the dot product. One multiply-accumulate counts as two operations. K/V bytes are
left out: the shares are of the weights alone, lower bounds at depth.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from flatlm.kernels_arm import layout, ops, probes
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.measuring import thermal
from flatlm.runtime.measuring.bench import Result, markdown


@dataclass(frozen=True)
class Roofline:
    """One test. Bytes and operations are of one token, rates of one second, shares of the probes' rates."""

    test: str
    bytes: int
    read: float  # bytes/s; 0 for a prompt, whose weights come from the cache for most tokens
    read_share: float
    operations: int
    rate: float  # operations/s
    rate_share: float
    probe: probes.Limits  # the mean of those of the repetitions that count
    repetitions: tuple[int, int]  # that count, of all


def work(records: np.ndarray, few: int, tokens: int, logits: int = 1) -> tuple[int, int]:
    """Bytes of weights and multiply-accumulates of one step, of those records that are products.

    few: `ops.sparse_tokens` of the kernels.
    """
    size = count = 0
    for record in records[records[:, 0] == ops.PRODUCT]:
        rows, columns = int(record[ops.P_PANELS]) * layout.ROWS, int(record[ops.P_PADDED])
        size += rows * columns * int(record[ops.P_BITS]) // 8 + int(record[ops.P_EXCESS_BYTES])
        times = logits if record[ops.P_LAST] else tokens
        if times <= few:  # the flattened channels once more: whole groups, or picked
            columns += 4 * int(record[ops.P_EXTRAS])
        else:
            columns += layout.padded(int(record[ops.P_WIDES]), layout.COLUMNS)
        count += rows * columns * times
    return size, count


def place(backend: NativeBackend, limits: list[probes.Limits], result: Result, tokens: int) -> Roofline:
    """A result of the native backend under its roof. `tokens` of one step: 1, or a prompt's.

    limits: a probe before each repetition and one after the last.
    """
    size, count = work(backend.plan.ops, ops.sparse_tokens(backend.kernels.tier.name), tokens)
    operations = 2 * count // tokens
    ends = list(pairwise(limits))
    kept = [i for i, pair in enumerate(ends) if probes.agreed(*pair)] or list(range(len(ends)))
    roofs = [probes.mean(ends[i]) for i in kept]
    rates = [result.rates[i] for i in kept]
    reads = [size * rate if tokens == 1 else 0.0 for rate in rates]
    return Roofline(
        result.test, size // tokens, median(reads), median(map(lambda a, roof: a / roof.read, reads, roofs)),
        operations, operations * median(rates),
        median(map(lambda rate, roof: operations * rate / (2 * roof.multiplications), rates, roofs)),
        probes.mean(roofs), (len(kept), len(ends)),
    )  # fmt: skip


def table(lines: list[Roofline]) -> str:
    """A Markdown table. `of`: repetitions at whose two ends the probes agreed."""
    head = ["test", "of", "MB/token", "GB/s", "probe", "share", "MOP/token", "GOP/s", "probe", "share"]
    rows = [
        [
            line.test,
            f"{line.repetitions[0]}/{line.repetitions[1]}",
            f"{line.bytes / 1e6:.2f}",
            f"{line.read / 1e9:.1f}" if line.read else "",
            f"{line.probe.read / 1e9:.1f}",
            f"{100 * line.read_share:.0f} %" if line.read else "",
            f"{line.operations / 1e6:.0f}",
            f"{line.rate / 1e9:.0f}",
            f"{2 * line.probe.multiplications / 1e9:.0f}",
            f"{100 * line.rate_share:.0f} %",
        ]
        for line in lines
    ]
    return markdown(head, rows, left=1)


def as_json(line: Roofline) -> dict[str, Any]:
    """The line, and what the system shows now."""
    return {**asdict(line), "machine": thermal.facts()}
