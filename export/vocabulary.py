"""The vocabulary's matrix: embedding, head, or both where a model ties them.

A head is read whole for every token: at 4 bits, a fifth of a small model's bytes are saved. Tied, one set of
integers serves both: GPTQ rounds it for the head's inputs, damped ten times as strongly as a layer's, which
leaves the rows closer to what they were as embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.graph import Graph, Node

from . import execute
from .parallel import each
from .passes.gptq import gptq
from .passes.grid import Grid, round_weights
from .recipe import Recipe

ROWS = 8192  # rounded at a time: a vocabulary of 150,000 would take gigabytes at once
_DAMPING = 10  # times the recipe's


def is_tied(graph: Graph) -> bool:
    """Whether the head names the embedding's matrix."""
    tables = [node.inputs[1] for node in graph.nodes if node.op == "Embedding"]
    return graph.nodes[-1].inputs[1] in tables


def head_hessian(graph: Graph, last: Sequence[Node], envs: Sequence[execute.Env]) -> np.ndarray:
    """Xᵀ · X [k, k] of the float head's inputs; `last` is the block of norm and head."""
    *before, head = last
    execute.advance(execute.prepare(graph, before), envs, [head])
    inputs = np.concatenate([env[head.inputs[0]] for env in envs])
    inputs = inputs.reshape(-1, inputs.shape[-1])
    return inputs.T @ inputs


def round_tied(table: np.ndarray, grid: Grid, hessian: np.ndarray | None, recipe: Recipe) -> np.ndarray:
    """Embedding and head in one: integers of the grid, int8 [V, k]. Without a Hessian, the nearest."""
    if hessian is not None:
        damping = _DAMPING * recipe.damping
        return gptq(table, hessian, grid, damping, recipe.does("order"), dtype=np.int8)

    def part(start: int) -> np.ndarray:
        rows = slice(start, start + ROWS)
        return round_weights(table[rows], grid.rows(rows.start, rows.stop)).astype(np.int8)

    return np.concatenate(each(part, range(0, len(table), ROWS)))
