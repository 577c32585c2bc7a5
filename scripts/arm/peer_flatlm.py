"""What flatlm does for some tokens or one product, to be counted; runs on the emulated processor.

    scripts/arm/run CPU --count FILE scripts/arm/peer_flatlm.py model ARTIFACT PROMPT TIMES TOKENS
    scripts/arm/run CPU --count FILE scripts/arm/peer_flatlm.py part ARTIFACT PART PAST ROWS TIMES
    scripts/arm/run CPU --count FILE scripts/arm/peer_flatlm.py product plain|edge M N K TIMES

model: as peer_llama.c, with the same ids. part: the operations of PART alone, for ROWS tokens after PAST
others, TIMES times; what stands in the buffers does not change what is executed. product: m tokens by a 4-bit
[n, k] matrix, float32 in and out, TIMES times; `plain` is the product alone, `edge` has as many wide channels
and as much sparse excess as the recipe gives SmolLM2-135M.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np

from flatlm.kernels_arm import ops
from flatlm.kernels_arm.records import table_of
from flatlm.kernels_arm.team import Team
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.format.artifact import open_artifact
from tests import single_ops

CONTEXT = 512
EXCESS = 0.012  # share of weights outside 4 bits, average of the artifact's 4-bit layers
WIDE_EVERY = 22  # a channel of two digits in 18 % of the 4-column groups, the average there


def model(path: str, prompt: int, times: int, tokens: int) -> None:
    """Read a prompt `times` times into an empty context, then feed `tokens` ids one by one."""
    backend = NativeBackend(open_artifact(path), threads=1, context=CONTEXT)
    ids = (7919 * np.arange(CONTEXT) + 13) % backend.vocab
    for _ in range(times):
        backend.truncate(0)
        logits = backend.forward(ids[:prompt])
    for i in range(prompt, prompt + tokens):
        logits = backend.forward(ids[i : i + 1])
    print(f"{backend.kernels.tier.name}, {backend.kernels.origin}, logit 0: {logits[-1][0]:g}")


def _only(table: np.ndarray, *codes: int) -> np.ndarray:
    return table[np.isin(table[:, 0], codes)]


def _linear(table: np.ndarray, bits: int, *without: int) -> np.ndarray:
    """The layers' products of so many bits, with some fields of their records 0."""
    table = _only(table, ops.PRODUCT)
    table = table[(table[:, ops.P_BITS] == bits) & (table[:, ops.P_LAST] == 0)].copy()
    table[:, list(without)] = 0
    return table


PARTS = {  # records of a plan; what the excess or the wide channels cost is the difference of two parts
    "embed": lambda table: _only(table, ops.EMBED),
    "quantize": lambda table: _only(table, ops.QUANTIZE),
    "rotate": lambda table: _only(table, ops.ROTATE, ops.ROTATE8),
    "attend": lambda table: _only(table, ops.ATTEND, ops.ATTEND8),
    "head": lambda table: _only(table, ops.PRODUCT)[-1:],
    "int4": lambda table: _linear(table, 4),
    "int4 without excess": lambda table: _linear(table, 4, ops.P_STARTS),
    "int4 plain": lambda table: _linear(table, 4, ops.P_STARTS, ops.P_EXTRAS, ops.P_EVENS),
    "int8": lambda table: _linear(table, 8),
    "int8 plain": lambda table: _linear(table, 8, ops.P_EXTRAS, ops.P_EVENS),
}


def part(path: str, name: str, past: int, rows: int, times: int) -> None:
    """The records of one part as a plan of its own."""
    backend = NativeBackend(open_artifact(path), threads=1, context=CONTEXT)
    plan = backend.plan
    chosen = PARTS[name](plan.ops)
    plan.state[[ops.STEP_TOKENS, ops.STEP_LOGITS]], plan.rows[0] = (rows, 1), rows - 1
    plan.state[ops.STEP_SPANS] = ops.write_spans(plan.spans, [(0, rows, past)])
    if len(chosen):
        steps(times, list(chosen), plan.scratch, plan.state)
    print(f"{name}: {len(chosen)} operations")


def product(kind: str, m: int, n: int, k: int, times: int) -> None:
    """One product of random matrices `times` times: quantize m rows of x, multiply, scale."""
    rng = np.random.default_rng(0)
    weights, limit = rng.integers(-8, 8, (n, k), np.int8), np.full(k, 127)
    if kind == "edge":
        where = rng.choice(n * k, int(EXCESS * n * k), replace=False)
        weights.reshape(-1)[where] = rng.choice(np.array([-12, 11], np.int8), where.size)
        limit[::WIDE_EVERY] = 254
    single_ops.run = partial(_run, times)
    x = rng.standard_normal((m, k), np.float32)
    single_ops.linear(x, 32.0, limit, weights, 4, np.ones(n, np.float32), np.zeros(n, np.float32))


def _run(times: int, records: list[np.ndarray], segments, scratch: int, threads: int) -> None:
    """In the place of `single_ops.run`: the same, `times` times."""
    state, held = single_ops.step_words(segments)
    steps(times, records, scratch, state)
    del held


def steps(times: int, records: list[np.ndarray], scratch: int, state: np.ndarray) -> None:
    """Walk a table of these records `times` times, with one thread."""
    team = Team(single_ops.native_library(), table_of(records), state, scratch, 1)
    for _ in range(times):
        team.step()
    team.close()


if __name__ == "__main__":
    kind, *names = sys.argv[1:]
    numbers = [int(word) if word.isdigit() else word for word in names]
    {"model": model, "part": part, "product": product}[kind](*numbers)
