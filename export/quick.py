"""Float graph → integer graph without calibration: nearest integers, inputs of two digits.

Nothing is run, so nothing is known of what the layers read: all input channels have two digits, with a step a
token, which holds any range. What that leaves of a model is in docs/quantization.md.

Legend: n outputs, k inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flatlm.runtime.format.graph import Graph, Node, in_body
from flatlm.runtime.progress import Progress

from . import ops
from .constants import load
from .decisions import Matrix
from .emit import Rounded, copy, emit_embedding, emit_linear
from .experts import emit_experts, experts_of, matrix_of
from .parallel import each
from .passes.flatten import Flattening
from .passes.grid import Grid, excess_share, round_weights
from .passes.pieces import room
from .recipe import Recipe
from .report import LayerReport, Report, sizes_of
from .vocabulary import ROWS, is_tied

# Layers that get 8 bits where the body has 4: an eighth to a quarter of the weights, and what a sweep of
# gradients spends bytes on first (`edge` of SmolLM2 and Qwen2.5-Coder 0.5B and 1.5B: 37 of 43 such layers).
FINE = ("attention.qkv", "attention.out")


@dataclass(frozen=True, slots=True)
class _Table:
    """The embedding as integers, which a tied head shares."""

    integers: np.ndarray  # int8 [V, k]
    grid: Grid


def quick(graph: Graph, recipe: Recipe, progress: Progress) -> tuple[Graph, Report]:
    """docs/format.md's integer graph, and a report; `progress` is told (blocks done, blocks).

    `graph` is left as it is; its constants may be lazy.
    """
    result = Graph(inputs=graph.inputs, outputs=graph.outputs, metadata=dict(graph.metadata))
    layers: list[LayerReport] = []
    groups, tables, tied = graph.blocks, dict[str, _Table](), is_tied(graph)
    for done, nodes in enumerate(groups):
        progress(done, len(groups))
        shared = graph.head.inputs[1] if tied and nodes[-1] is graph.head else None
        local = load(graph, nodes, without=shared)
        tables |= _tables(local, recipe, result)
        roundings = _round(local, recipe, tables[shared] if shared else None)
        for node in nodes:
            if ops.of(node.op).matrix == "experts":
                layers.append(_experts(node, local, recipe, result))
            elif node.name in roundings:
                emit_linear(node, roundings[node.name], result)
            elif not ops.of(node.op).matrix:
                copy(local, [node], result)
        layers += [_report(name, rounded) for name, rounded in roundings.items()]
    progress(len(groups), len(groups))
    return result, Report(recipe, tuple(layers), *sizes_of(result))


def _tables(local: Graph, recipe: Recipe, result: Graph) -> dict[str, _Table]:
    """Appends the block's embeddings, of tokens and in some models of positions, by their weights; 8 bits."""
    tables = {}
    for node in ops.tables(local.nodes):
        table = tables[node.inputs[1]] = _Table(*_rounded(Matrix(node, local, recipe), 8))
        emit_embedding(node, table.integers, table.grid, result)
    return tables


def _round(local: Graph, recipe: Recipe, table: _Table | None) -> dict[str, Rounded]:
    """The linears of a block by name, side by side; the head has the integers of `table` where it is tied."""

    def linear(node: Node) -> tuple[str, Rounded]:
        bias = local.array(node.inputs[2])
        if table is not None:
            integers, grid = table.integers, table.grid
        else:
            fine = not in_body(node.name) or node.name.endswith(FINE) or ops.is_router(node, local.nodes)
            bits = 8 if fine else recipe.lowest_bits
            integers, grid = _rounded(Matrix(node, local, recipe), bits)
        return node.name, Rounded(integers, grid, _two_digits(integers.shape[1]), bias)

    return dict(each(linear, ops.linears(local.nodes)))


def _experts(node: Node, local: Graph, recipe: Recipe, result: Graph) -> LayerReport:
    """Appends a layer of experts."""
    count = experts_of(node, local)
    matrices = [matrix_of(node, local, recipe, number) for number in range(count)]
    rounded = [
        Rounded(
            *_rounded(one, recipe.lowest_bits),
            _two_digits(one.weight.shape[1]),
            one.local.array(node.inputs[3]),
        )
        for one in matrices
    ]
    emit_experts(node, rounded, result)
    found = _report(node.name, rounded[0])
    excess = float(np.mean([excess_share(one.integers, one.grid) for one in rounded]))
    return replace(found, rows=count * found.rows, excess=excess, experts=count)


def _rounded(matrix: Matrix, bits: int) -> tuple[np.ndarray, Grid]:
    """The nearest integers, int8 [n, k], a block of rows at a time."""
    weight, grid = matrix.weight, matrix.grid((bits, matrix.recipe.sigma))
    integers = np.empty(weight.shape, np.int8)
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        integers[rows] = round_weights(weight[rows], grid.rows(rows.start, rows.stop))
    return integers, grid


def _two_digits(k: int) -> Flattening:
    """All k channels wide, with a step a token; the threshold is what calibration saw, here nothing."""
    return Flattening(0.0, 127, np.full(k, room(k, k), np.int64), by_token=True)


def _report(name: str, rounded: Rounded) -> LayerReport:
    rows, columns = rounded.integers.shape
    flattening, bits = rounded.flattening, rounded.grid.bits
    excess = excess_share(rounded.integers, rounded.grid)
    extra, groups = flattening.extra, flattening.double_groups
    return LayerReport(name, bits, 8, rows, columns, None, None, extra, groups, excess, None, None)
