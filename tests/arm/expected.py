"""What the tiny graphs give on this machine, logits and tokens: `python -m tests.arm.expected OUT.npz`.

Run on x86 by `scripts/arm/check`, read on AArch64 by test_native.py, which demands the same bits.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.format.graph import Graph
from tests.recurrent_graphs import MIXERS, recurrent_graph
from tests.tiny_graphs import CONTEXT, VOCABULARY, quantized_graph

MODELS = (
    *((seed, kv, "static") for kv in ("float32", "int8") for seed in (0, 1)),
    *((seed, kv, "token") for seed, kv in ((2, "float32"), (3, "int8"))),
    (4, "int8", "static", "norms"),
    (5, "float32", "token", "qk_norm"),
    (6, "int8", "static", "qk_norm"),
    (7, "float32", "static", "window"),
    (9, "float32", "static", "gelu_tanh"),
    (10, "int8", "token", "gelu_tanh", "norms"),
    (8, "int8", "token", "window"),
    *((13, "float32", "static", mixer) for mixer in MIXERS),
    *((14, "int8", "token", mixer) for mixer in MIXERS),
    (11, "float32", "static", "plain", "gelu", "output_gate"),
    (12, "int8", "token", "relu2", "head_gate", "norms"),
    (20, "float32", "token", "experts"),
    (21, "int8", "static", "sigmoid_experts"),
    (13, "float32", "static", "softcap", "slopes", "sinks", "window", "logit_cap"),
    (14, "int8", "token", "softcap", "slopes", "sinks", "window", "no_rotation", "positions"),
    (15, "float32", "token", "qk_norm", "own", "centered", "no_rotation", "norms"),
    (16, "int8", "static", "qk_norm", "all", "norm_last", "centered", "plain", "xielu"),
)
PROMPT = 8  # tokens before the greedy ones


def tokens(seed: int) -> np.ndarray:
    """A prompt that fills the context, int64 [CONTEXT]."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, CONTEXT)


def graph_of(model: tuple) -> Graph:
    """Of a seed, a cache, activations and options."""
    seed, kv, activations, *options = model
    if options and options[0] in MIXERS:
        return recurrent_graph(options[0], seed, kv, activations)
    return quantized_graph(seed, kv, activations, *options)


def native_logits(graph: Graph, ids: np.ndarray, cuts: tuple[int, ...], threads: int) -> np.ndarray:
    """float32 [len(ids), vocabulary], the ids given in pieces of these sizes."""
    backend = NativeBackend(SimpleNamespace(graph=graph), threads=threads)
    ends = np.cumsum(cuts)
    logits = [backend.forward(ids[end - size : end], size) for end, size in zip(ends, cuts, strict=True)]
    backend.close()
    return np.concatenate(logits)


def greedy_tokens(graph: Graph, prompt: np.ndarray, threads: int) -> list[int]:
    """The likeliest token after the prompt, after that one, and so on until the context is full.

    Of those not written yet: else such a small model repeats one.
    """
    backend = NativeBackend(SimpleNamespace(graph=graph), threads=threads)
    written: list[int] = []
    logits = backend.forward(prompt)
    while len(prompt) + len(written) < CONTEXT:
        logits[-1, written] = -np.inf
        written.append(int(logits[-1].argmax()))
        logits = backend.forward(np.array(written[-1:]))
    backend.close()
    return written


def main() -> None:
    found: dict[str, object] = {}
    for model in MODELS:
        graph, ids = graph_of(model), tokens(model[0])
        found[f"{model}"] = native_logits(graph, ids, (CONTEXT,), 1)
        found[f"{model} greedy"] = greedy_tokens(graph, ids[:PROMPT], 1)
    np.savez(Path(sys.argv[1]), **found)


if __name__ == "__main__":
    main()
