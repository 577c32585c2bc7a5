"""What flatlm does for some tokens or one product, to be counted; runs on the emulated processor.

    scripts/arm/run CPU --count FILE scripts/arm/peer_flatlm.py model ARTIFACT PROMPT TIMES TOKENS
    scripts/arm/run CPU --count FILE scripts/arm/peer_flatlm.py product plain|edge M N K TIMES

model: as peer_llama.c, with the same ids. product: m tokens by a 4-bit [n, k] matrix, float32 in and out,
TIMES times; `plain` is the product alone, `edge` has as many wide channels and as much sparse excess as the
recipe gives SmolLM2-135M.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np

from kernels_arm import ops
from kernels_arm.team import Team, aligned
from runtime.artifact import open_artifact
from runtime.backends.native import NativeBackend
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


def product(kind: str, m: int, n: int, k: int, times: int) -> None:
    """One product of random matrices `times` times: quantize m rows of x, multiply, scale."""
    rng = np.random.default_rng(0)
    weights, limit = rng.integers(-8, 8, (n, k), np.int8), np.full(k, 127)
    if kind == "edge":
        where = rng.choice(n * k, int(EXCESS * n * k), replace=False)
        weights.reshape(-1)[where] = rng.choice(np.array([-12, 11], np.int8), where.size)
        limit[::WIDE_EVERY] = 254
    single_ops.run = partial(steps, times)
    x = rng.standard_normal((m, k), np.float32)
    single_ops.linear(x, 32.0, limit, weights, 4, np.ones(n, np.float32), np.zeros(n, np.float32))


def steps(times: int, records: list[np.ndarray], tokens: int, scratch: int, threads: int) -> None:
    """In the place of `single_ops.run`: the same, `times` times."""
    table = aligned(8 * ops.FIELDS * len(records)).view(np.int64).reshape(-1, ops.FIELDS)
    table[:] = records
    state = np.zeros(8, np.int64)
    state[ops.STEP_TOKENS] = state[ops.STEP_LOGITS] = tokens
    team = Team(single_ops.native_library(), table, state, scratch, threads)
    for _ in range(times):
        team.step()
    team.close()


if __name__ == "__main__":
    kind, name, *numbers = sys.argv[1:]
    {"model": model, "product": product}[kind](name, *map(int, numbers))
