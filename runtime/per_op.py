"""Where the time of a step goes: the operations of the native plan, summed over the layers.

The first thread takes the time from one operation's end to the next one's, waiting for the others included.
A product's bytes are its weights with their sparse excess; its multiplications are those of the weights as
they stand in the file, with the groups of columns that flattening has run twice.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernels_arm import layout, ops
from runtime.backends.native import NativeBackend
from runtime.bench import markdown

STEPS = 32  # of one token; a prompt is read this many tokens at once, too


@dataclass(frozen=True)
class OpTime:
    """One kind of operation, all layers together, per step."""

    name: str
    count: int
    seconds: float
    bytes: int
    multiplications: int


def measure(backend: NativeBackend, tokens: int, depth: int = 0) -> list[OpTime]:
    """Steps of `tokens` tokens after `depth` others; the longest first. Leaves the sequence empty."""
    ids = np.random.default_rng(0).integers(0, backend.vocab, max(tokens, depth))
    backend.truncate(0)
    if depth:
        backend.forward(ids[:depth])
    _run(backend, ids[:tokens], depth, 2)
    ticks = backend.team.time_ops(True)
    seconds = _run(backend, ids[:tokens], depth, steps := max(2, STEPS // tokens))
    backend.team.time_ops(False)
    backend.truncate(0)
    found: dict[str, list[int]] = {}
    for i, (record, node) in enumerate(zip(backend.plan.ops, backend.plan.names, strict=True)):
        name = f"{ops.NAMES[int(record[0])]} {re.sub(r'^layers[.][0-9]+[.]', '', node)}"
        found.setdefault(name, []).append(i)
    per_tick = seconds / steps / max(1, int(ticks.sum()))
    result = [
        OpTime(name, len(at), float(ticks[at].sum()) * per_tick, *_work(backend.plan.ops[at], tokens))
        for name, at in found.items()
    ]
    return sorted(result, key=lambda op: -op.seconds)


def _run(backend: NativeBackend, ids: np.ndarray, depth: int, steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        backend.forward(ids)
        backend.truncate(depth)
    return time.perf_counter() - started


def _work(records: np.ndarray, tokens: int) -> tuple[int, int]:
    """Bytes of weights and multiplications of the records that are products."""
    size = work = 0
    for record in records[records[:, 0] == ops.LINEAR]:
        rows, columns = int(record[ops.L_PANELS]) * layout.ROWS, int(record[ops.L_PADDED])
        size += rows * columns * int(record[ops.L_BITS]) // 8 + int(record[ops.L_EXCESS_BYTES])
        work += rows * (columns + 4 * int(record[ops.L_EXTRAS])) * (1 if record[ops.L_LAST] else tokens)
    return size, work


def table(times: Sequence[OpTime]) -> str:
    """A Markdown table, with the sum as its last line."""
    total = sum(op.seconds for op in times)
    both = sum(op.bytes for op in times), sum(op.multiplications for op in times)
    lines = [*times, OpTime("all", sum(op.count for op in times), total, *both)]
    head = ["operation", "count", "ms", "share", "MB", "GB/s", "GMAC/s"]
    return markdown(head, (_cells(op, total) for op in lines), left=1)


def _cells(op: OpTime, total: float) -> list[str]:
    rates = [
        f"{amount / op.seconds / 1e9:.1f}" if amount else "" for amount in (op.bytes, op.multiplications)
    ]
    size = f"{op.bytes / 1e6:.1f}" if op.bytes else ""
    return [
        op.name,
        str(op.count),
        f"{1e3 * op.seconds:.3f}",
        f"{100 * op.seconds / total:.1f} %",
        size,
        *rates,
    ]
