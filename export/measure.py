"""The sweep back: what each way to round each layer would cost, and which it gets for the bytes there are.

Gradients go through the smoothed float model from the head to the embedding, a block at a time; `sensitivity`
has the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flatlm.runtime.errors import UsageError
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.progress import Progress

from . import execute, ops, sensitivity
from .constants import load, shape_of
from .decisions import Decisions, Matrix, transform
from .experts import CHOICE, experts_of, matrix_of
from .gradients import Gradients, backward
from .journal import Journal
from .ops.embedding import scale_of
from .ops.function import Env
from .passes.bits import Variant, point_of, within_bytes, within_kl
from .sensitivity import Moved


def measure(graph: Graph, decided: Decisions, progress: Progress, journal: Journal) -> Decisions:
    """`decided`, its probes used up, with variants; `progress` is told (blocks, all blocks)."""
    groups = graph.blocks
    done, decided, gradients = journal.load("measure") or (0, decided, {})
    progress(done, len(groups))
    if done == 0:
        gradients = _measure_head(load(graph, groups[-1]), decided)
        journal.save("measure", (1, decided, gradients))
        progress(1, len(groups))
    head = graph.head
    for i in range(max(1, done), len(groups)):
        nodes = groups[-1 - i]
        probe, local = decided.probes.pop(), load(graph, nodes)
        read = set(probe)
        transform(local, decided)
        execute.run(execute.prepare(local, nodes), probe)
        backward(local, nodes, probe, gradients)
        block = _Block(local, probe, gradients, decided)
        for node in ops.linears(nodes):
            if not ops.is_router(node, nodes):
                block.layer(node)
        for node in ops.expert_layers(nodes):
            block.experts(node)
        for node in ops.tables(nodes):
            if node.inputs[1] == head.inputs[1] and decided.of(head.name).variants:
                block.embedding(node, head)
        gradients = {name: gradient for name, gradient in gradients.items() if name in read}
        journal.save("measure", (i + 1, decided, gradients))
        progress(i + 1, len(groups))
    return decided


@dataclass
class _Block:
    """A block that the sweep has come to: `env` has what it reads and makes, `gradients` those of that."""

    local: Graph
    env: Env
    gradients: Gradients
    decided: Decisions

    def layer(self, node: Node) -> None:
        """What each way to round it costs."""
        self._note(node, self._of_inputs(node))

    def _of_inputs(self, node: Node) -> dict[int, float]:
        """`sensitivity.by_inputs` by the weights' bits."""
        x, flattenings = self.env[node.inputs[0]], self.decided.of(node.name).flattenings
        return {
            bits: sensitivity.by_inputs(x, self.gradients[node.inputs[0]], flattening)
            for bits, flattening in flattenings.items()
        }

    def experts(self, node: Node) -> None:
        """The same of all experts of a layer, which have the same bits: what goes to each, summed up."""
        recipe, chosen = self.decided.recipe, self.env[node.inputs[CHOICE]]
        x, y = self.env[node.inputs[0]], self.gradients[node.outputs[0]]
        moved: list[list[Moved]] = []
        for number in range(count := experts_of(node, self.local)):
            matrix, mine = matrix_of(node, self.local, recipe, number), chosen == number
            own = x[mine] if x.ndim == chosen.ndim + 1 else x[mine.any(-1)]
            grids = [matrix.grid(way) for way in sensitivity.ways(recipe)]
            of_own = y[:, mine]
            if not len(own):  # nothing moves, but it has its excess
                own, of_own = (
                    np.zeros((1, x.shape[-1]), np.float32),
                    np.zeros((len(y), 1, y.shape[-1]), np.float32),
                )
            moved.append(sensitivity.by_weights(matrix.weight, of_own, own, grids))
        sums = [
            Moved(sum(one.square for one in way), sum(one.excess for one in way) / count)
            for way in zip(*moved, strict=True)
        ]
        self._weigh(
            node, (count * matrix.weight.shape[0], matrix.weight.shape[1]), sums, self._of_inputs(node)
        )

    def head(self) -> None:
        """The same; nothing quantizes what it reads."""
        self._note(self.local.head, {4: 0.0, 8: 0.0})

    def _note(self, node: Node, inputs: dict[int, float]) -> None:
        """inputs: `sensitivity.by_inputs` by the weights' bits."""
        recipe, matrix = self.decided.recipe, Matrix(node, self.local, self.decided.recipe)
        x, y, weight = self.env[node.inputs[0]], self.gradients[node.outputs[0]], matrix.weight
        grids = [matrix.grid(way) for way in sensitivity.ways(recipe)]
        self._weigh(node, weight.shape, sensitivity.by_weights(weight, y, x, grids), inputs)

    def _weigh(
        self, node: Node, shape: tuple[int, ...], moved: list[Moved], inputs: dict[int, float]
    ) -> None:
        """shape: n, k of the matrix, or of all experts' one below the other."""
        left, (n, k) = self.decided.of(node.name).unexplained, shape
        moved = [Moved(left * one.square, one.excess) for one in moved]
        tables = 8 * n + 4 * k  # bytes: scale and bias, limit
        positions = sensitivity.positions(self.gradients[node.outputs[0]])
        variants = sensitivity.variants((n, k), tables, moved, inputs, positions, self.decided.recipe)
        self.decided.measured(node.name, variants)

    def embedding(self, node: Node, head: Node) -> None:
        """A tied table is read twice: its rows also start the model."""
        y, decided = self.gradients[node.outputs[0]] * scale_of(node), self.decided
        table, ids = self.local.array(node.inputs[1]), self.env[node.inputs[0]]
        squares = sensitivity.of_embedding(table, ids, y, sensitivity.ways(decided.recipe))
        variants = [
            Variant(v.bits, v.sigma, v.bytes, v.kl + square / (2 * sensitivity.positions(y)))
            for v, square in zip(decided.of(head.name).variants, squares, strict=True)
        ]
        decided.note(head.name, variants=variants)


def _measure_head(last: Graph, decided: Decisions) -> Gradients:
    """Starts the sweep: the gradients of what the last block reads."""
    probe = decided.probes.pop()
    read = set(probe)
    gradients = sensitivity.start(last, probe)
    if decided.recipe.head == "auto":
        _Block(last, probe, gradients, decided).head()
    return {name: gradient for name, gradient in gradients.items() if name in read}


def choose(graph: Graph, decided: Decisions) -> dict[str, Variant]:
    """How each layer is rounded; layers that leave no choice are not in it.

    UsageError where the smallest choice is larger than the recipe's `size`.
    """
    variants, recipe = decided.variants, decided.recipe
    if not variants:
        return {}
    if recipe.max_kl is not None:
        return within_kl(variants, recipe.max_kl)
    if recipe.size is not None:
        fixed = fixed_bytes(graph, decided)
        chosen = within_bytes(variants, 1e6 * recipe.size - fixed)
        smallest = fixed + point_of(chosen).bytes
        if smallest > 1e6 * recipe.size:
            raise UsageError(f"--size {recipe.size:g}: the smallest is {math.ceil(smallest / 1e4) / 100} MB")
        return chosen
    shapes = (shape_of(graph, node.inputs[1]) for node in graph.body if node.name in variants)
    return within_bytes(variants, recipe.bits_per_weight / 8 * sum(map(math.prod, shapes)))


def fixed_bytes(graph: Graph, decided: Decisions) -> float:
    """Of the constants without a choice: norms, and matrices in 8 bits or, the head, in those it is given.

    A tied embedding has only its scale. The excess of a 4-bit head is that of normally distributed weights.
    """
    variants, recipe = decided.variants, decided.recipe
    matrices = [node for node in graph.nodes if ops.of(node.op).matrix]
    head = graph.head.inputs[1]
    counted = {node.inputs[1] for node in matrices if node.name in variants}
    others = [(ops.of(node.op), node) for node in graph.nodes if not ops.of(node.op).matrix]
    total = sum(4.0 * one.parameters(graph, node) for one, node in others if one.parameters)
    for node in (node for node in matrices if node.name not in variants):
        *rows_of_all, columns = shape_of(graph, node.inputs[1])
        rows = math.prod(rows_of_all)
        total += 8 * rows
        if node.inputs[1] not in counted:
            low = recipe.head == "4" and node.inputs[1] == head
            excess = math.erfc(recipe.sigma / math.sqrt(2)) if low else None
            total += sensitivity.matrix_bytes((rows, columns), excess)
        counted.add(node.inputs[1])
    return total
