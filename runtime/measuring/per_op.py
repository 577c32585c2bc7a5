"""Where the time of a step goes: the operations of the native plan, summed over the layers.

The first thread takes the time from one operation's end to the next one's, waiting for the others included.
A product's bytes are its weights with their sparse excess; its multiplications are those of the weights as
they stand in the file, with the groups of columns that flattening has run twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.kernels_arm import ops, probes
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.format.graph import within_layer
from flatlm.runtime.measuring.bench import markdown
from flatlm.runtime.measuring.roofline import work

STEPS = 32  # of one token; a prompt is read this many tokens at once, too


@dataclass(frozen=True)
class OpTime:
    """One kind of operation, all layers together, per step."""

    name: str
    count: int
    seconds: float
    bytes: int
    multiplications: int


def measure(backend: NativeBackend, tokens: int, depth: int = 0, logits: int = 1) -> list[OpTime]:
    """Steps of `tokens` tokens after `depth` others, with logits of the last ones; the longest operation
    first. Leaves the sequence empty.
    """
    ids = np.random.default_rng(0).integers(0, backend.vocab, max(tokens, depth))
    backend.truncate(0)
    if depth:
        backend.forward(ids[:depth])

    def run(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            backend.forward(ids[:tokens], logits)
            backend.truncate(depth)
        return time.perf_counter() - started

    run(2)
    ticks = backend.team.time_ops(True)
    seconds = run(steps := max(2, STEPS // tokens))
    backend.team.time_ops(False)
    backend.truncate(0)
    found: dict[str, list[int]] = {}
    for i, (record, node) in enumerate(zip(backend.plan.ops, backend.plan.names, strict=True)):
        name = f"{ops.NAMES[int(record[0])]} {within_layer(node)}"
        found.setdefault(name, []).append(i)
    per_tick = seconds / steps / max(1, int(ticks.sum()))
    few = ops.sparse_tokens(backend.kernels.tier.name)
    result = []
    for name, at in found.items():
        size_and_count = work(backend.plan.ops[at], few, tokens, logits)
        result.append(OpTime(name, len(at), float(ticks[at].sum()) * per_tick, *size_and_count))
    return sorted(result, key=lambda op: -op.seconds)


def table(times: Sequence[OpTime], limits: probes.Limits) -> str:
    """A Markdown table, with the sum and then the probes' rates as its last lines. GOP/s: 2 operations a
    multiply-accumulate.
    """
    total = sum(op.seconds for op in times)
    both = sum(op.bytes for op in times), sum(op.multiplications for op in times)
    lines = [*times, OpTime("all", sum(op.count for op in times), total, *both)]
    head = ["operation", "count", "ms", "share", "MB", "GB/s", "GOP/s", "of read", "of peak"]
    probe = [f"{limits.read / 1e9:.1f}", f"{2 * limits.multiplications / 1e9:.0f}"]
    rows = [_cells(op, total, limits) for op in lines]
    return markdown(head, [*rows, ["probe", *[""] * 4, *probe, "", ""]], left=1)


def _cells(op: OpTime, total: float, limits: probes.Limits) -> list[str]:
    read, rate = op.bytes / op.seconds, op.multiplications / op.seconds
    work = [f"{op.bytes / 1e6:.1f}", f"{read / 1e9:.1f}", f"{2 * rate / 1e9:.0f}"]
    shares = [f"{100 * read / limits.read:.0f} %", f"{100 * rate / limits.multiplications:.0f} %"]
    share = f"{100 * op.seconds / total:.1f} %"
    return [op.name, str(op.count), f"{1e3 * op.seconds:.3f}", share, *(
        [*work, *shares] if op.bytes else [""] * 5
    )]  # fmt: skip
