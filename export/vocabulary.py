"""The vocabulary's matrix: embedding, head, or both where a model ties them.

A head is read whole for every token: at 4 bits, a fifth of a small model's bytes are saved. Tied, one set of
integers serves both: GPTQ rounds it for the head's inputs, damped twice as strongly as a layer's, which
leaves the rows closer to what they were as embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flatlm.runtime.format.graph import Graph, Node

from . import calibrate, execute, ops
from .ops.function import Env
from .parallel import each
from .passes.gptq import gptq
from .passes.grid import Grid, round_weights
from .recipe import Recipe

ROWS = 8192  # rounded at a time: a vocabulary of 150,000 would take gigabytes at once
_DAMPING = 2  # times the recipe's


def is_tied(graph: Graph) -> bool:
    """Whether the head names the embedding's matrix."""
    tables = [node.inputs[1] for node in ops.tables(graph.nodes)]
    return graph.head.inputs[1] in tables


def head_inputs(graph: Graph, last: Sequence[Node], envs: Sequence[Env]) -> calibrate.Moments:
    """Of the float head's inputs; `last` is the block of norm and head, the last product there."""
    at = max(i for i, node in enumerate(last) if ops.of(node.op).matrix == "linear")
    head = last[at]
    execute.advance(execute.prepare(graph, last[:at]), envs, [head])
    inputs = np.concatenate([env[head.inputs[0]] for env in envs])
    return calibrate.moments(inputs.reshape(-1, inputs.shape[-1]), centred=False)


def round_tied(table: np.ndarray, grid: Grid, seen: calibrate.Moments | None, recipe: Recipe) -> np.ndarray:
    """Embedding and head in one: integers of the grid, int8 [V, k]. Without `seen`, the nearest."""
    if seen is not None:
        damping = _DAMPING * recipe.damping_of(table.shape[1], seen.rows)
        return gptq(table, seen.hessian, grid, damping, recipe.does("order"), dtype=np.int8)

    def part(start: int) -> np.ndarray:
        rows = slice(start, start + ROWS)
        return round_weights(table[rows], grid.rows(rows.start, rows.stop)).astype(np.int8)

    return np.concatenate(each(part, range(0, len(table), ROWS)))
