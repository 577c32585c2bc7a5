"""Runs a graph in numpy with BLAS: for calibration and for measuring what quantization costs.

Layer-major: all windows go through block i before block i + 1 is read, so weights are read once and
few live at a time. It knows no architecture, and what a function does is in `ops`. Not bit-exact: that is
`flatlm.kernels_arm.reference`; here a FlatLinear is its integers in float32 BLAS, off by rounding only.

Legend: B windows, T tokens of a window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.export import ops
from flatlm.export.ops.function import Env, Operation
from flatlm.export.parallel import each
from flatlm.export.probabilities import divergence, log_softmax
from flatlm.runtime.format.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Step:
    """A node with its weights at hand: run(inputs that are not constants) → outputs."""

    node: Node
    run: Operation


@dataclass(frozen=True, slots=True)
class Scores:
    """Over the predicted positions 1 … T−1 of every window: nats, perplexity, mean KL(reference ‖ graph)."""

    nll: float
    perplexity: float
    kl: float | None = None
    top1: float | None = None  # share of positions with the reference's most likely token


def prepare(graph: Graph, nodes: Iterable[Node]) -> list[Step]:
    """Reads (and unpacks) the weights of `nodes`; they live as long as the steps."""
    return [Step(node, ops.of(node.op).operation(graph, node)) for node in nodes]


def run(steps: Iterable[Step], env: Env) -> None:
    """Runs the steps on one chunk; results are added to `env`."""
    for step in steps:
        inputs = [env[name] for name in step.node.inputs if name in env]
        env.update(zip(step.node.outputs, step.run(*inputs), strict=False))


def keep(env: Env, later: Iterable[Node]) -> None:
    """Drops from `env` what no later node reads."""
    needed = {name for node in later for name in node.inputs}
    for name in [name for name in env if name not in needed]:
        del env[name]


def advance(steps: Sequence[Step], envs: Iterable[Env], later: Sequence[Node]) -> None:
    """Takes all chunks through the steps, side by side; what `later` nodes do not read is dropped."""

    def step(env: Env) -> None:
        run(steps, env)
        keep(env, later)

    each(step, envs)


def chunks(tokens: np.ndarray, size: int = 4) -> list[Env]:
    """Windows [B, T] → environments of `size` windows each."""
    position = np.arange(tokens.shape[1])[None]
    parts = [tokens[at : at + size] for at in range(0, len(tokens), size)]
    return [{"input_ids": part, "position_ids": position} for part in parts]


def run_blocks(graph: Graph, envs: Sequence[Env]) -> list[Step]:
    """Runs all blocks but the last over all chunks; returns the last one's steps, for the caller to run."""
    *most, last = graph.blocks
    for i, block in enumerate(most):
        steps = prepare(graph, block)
        later = [node for group in [*most[i + 1 :], last] for node in group]
        advance(steps, envs, later)
    return prepare(graph, last)


def logits(graph: Graph, tokens: np.ndarray) -> np.ndarray:
    """Windows [B, T] → float32 [B, T, V]. Mind the memory: `evaluate` never holds them all."""
    envs = chunks(tokens)
    last = run_blocks(graph, envs)
    for env in envs:
        run(last, env)
    return np.concatenate([env["logits"] for env in envs])


def evaluate(graph: Graph, tokens: np.ndarray, reference: Graph | None = None) -> Scores:
    """Perplexity on windows [B, T] (no begin token added), and KL to `reference` on the same tokens."""
    envs, others = chunks(tokens, 1), chunks(tokens, 1)
    last = run_blocks(graph, envs)
    last_of_reference = run_blocks(reference, others) if reference else []
    nll, kl, same = [], [], []
    for window, env, other in zip(tokens, envs, others, strict=True):
        run(last, env)
        scores = log_softmax(env.pop("logits")[0])
        nll.append(-np.mean(scores[np.arange(len(window) - 1), window[1:]], dtype=np.float64))
        if reference:
            run(last_of_reference, other)
            wanted = log_softmax(other.pop("logits")[0])
            kl.append(divergence(wanted, scores))
            same.append(np.mean(wanted.argmax(-1) == scores.argmax(-1)))
    mean = float(np.mean(nll))
    return Scores(mean, float(np.exp(mean)), *((float(np.mean(v)) if v else None) for v in (kl, same)))
