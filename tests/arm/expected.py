"""The logits of the tiny graphs as the machine at hand computes them: `python -m tests.arm.expected OUT.npz`.

Run on x86 by `scripts/arm/check`, read on AArch64 by test_native.py, which demands the same bits.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from runtime.backends.native import NativeBackend
from runtime.graph import Graph
from tests.tiny_graphs import CONTEXT, VOCABULARY, quantized_graph

MODELS = tuple((seed, kv) for kv in ("float32", "int8") for seed in (0, 1))


def tokens(seed: int) -> np.ndarray:
    """A prompt that fills the context, int64 [CONTEXT]."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, CONTEXT)


def native_logits(graph: Graph, ids: np.ndarray, cuts: tuple[int, ...], threads: int) -> np.ndarray:
    """float32 [len(ids), vocabulary], the ids given in pieces of these sizes."""
    backend = NativeBackend(SimpleNamespace(graph=graph), threads=threads)
    ends = np.cumsum(cuts)
    logits = [backend.forward(ids[end - size : end], size) for end, size in zip(ends, cuts, strict=True)]
    backend.close()
    return np.concatenate(logits)


def main() -> None:
    logits = {
        f"{kv}{seed}": native_logits(quantized_graph(seed, kv), tokens(seed), (CONTEXT,), 1)
        for seed, kv in MODELS
    }
    np.savez(Path(sys.argv[1]), **logits)


if __name__ == "__main__":
    main()
