"""Float graph → integer graph: smooth, choose bits, flatten, round. The passes in order, layer by layer.

Two sweeps over the model, each reading every weight once:

    survey     float inputs → decisions about each layer, and the KL that each layer alone causes at 4 bits
    quantize   the calibration windows go through the layers already quantized, so each layer is rounded on
               what it will really read; some go through the float model beside them, for how far means drift

Legend: n outputs, k inputs, B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flatlm.runtime.format import nested
from flatlm.runtime.format.graph import Graph, Node, in_body, within_layer
from flatlm.runtime.progress import Progress

from . import calibrate, execute, ops
from .constants import load
from .decisions import Decision, Decisions, Matrix, transform
from .emit import Rounded, copy, emit_embedding, emit_linear, table_of
from .experts import Reads, all_in_one, emit_experts, error_of_experts, experts_of, matrix_of
from .experts import operation as of_experts
from .frontier import sizes
from .journal import Journal
from .measure import choose, fixed_bytes, measure
from .ops.function import Env, Operation
from .parallel import each
from .passes import keys
from .passes.bits import Variant, frontier, point_of
from .passes.cache import to_int8
from .passes.flatten import Flattening
from .passes.flatten import rounded as rounded_inputs
from .passes.gptq import gptq
from .passes.grid import Grid, excess_share, round_weights
from .recipe import Recipe
from .report import LayerReport, Report, sizes_of
from .survey import survey
from .vocabulary import round_tied

SAMPLE = 512  # tokens of which a layer is compared with the float one, for its error: a head has wide outputs
PAIRED = 2  # chunks of windows that also go through the float model


@dataclasses.dataclass
class Streams:
    """The windows on their way through the quantized model, and some of them through the float model."""

    quantized: list[Env]
    floats: list[Env]

    @classmethod
    def of(cls, windows: np.ndarray) -> Streams:
        chunks = execute.chunks(windows)
        return cls(chunks, [dict(env) for env in cls._some(chunks)])

    @staticmethod
    def _some(chunks: list[Env]) -> list[Env]:
        return chunks[:: max(1, len(chunks) // PAIRED)]

    def mean(self, name: str) -> np.ndarray:
        """Of a layer's inputs as the float model has them, [k]: the drift is that of some windows."""
        drift = calibrate.mean(env[name] for env in self.floats)
        drift -= calibrate.mean(env[name] for env in self._some(self.quantized))
        mean: np.ndarray = calibrate.mean(env[name] for env in self.quantized) + drift
        return mean


def quantize(
    graph: Graph,
    recipe: Recipe,
    tokens: np.ndarray,
    tell: Callable[[str], Progress] = lambda stage: lambda done, total: None,
    journal: Journal | None = None,
) -> tuple[Graph, Report]:
    """A float graph and calibration token ids [N] → docs/format.md's integer graph, and a report.

    `graph` is left as it is; its constants may be lazy. `tell` names a stage and returns what is told (blocks
    done, blocks). `journal`: goes on from what is there, and writes down each block.
    """
    journal = journal or Journal()
    windows = calibrate.windows(tokens, recipe.windows, calibrate.longest(graph))
    decided = survey(graph, recipe, windows, tell("looking at the inputs of each layer"), journal)
    if recipe.weight_bits == "auto":
        decided = measure(graph, decided, tell("weighing what each layer may lose"), journal)
    chosen = choose(graph, decided)
    _decide_ways(graph, chosen, decided)
    result, layers = _round_all(graph, windows, decided, tell("quantizing"), journal)
    if recipe.kv == "int8":
        for meeting in keys.meetings(result.nodes):
            if meeting.name in decided.keys:
                keys.apply(result, meeting, decided.keys[meeting.name])
        to_int8(result)
    nested.join(result)
    report = Report(recipe, tuple(layers), *sizes_of(result), unsmoothed=_unsmoothed(graph, decided))
    if not chosen:
        return result, report
    fixed = fixed_bytes(graph, decided)
    line, (point,) = sizes(frontier(decided.variants), fixed), sizes([point_of(chosen)], fixed)
    return result, dataclasses.replace(report, frontier=line, chosen=point)


def _unsmoothed(graph: Graph, decided: Decisions) -> tuple[str, ...]:
    """Kinds of layers whose inputs are made by nothing that could take a scale."""
    if not decided.recipe.does("smooth"):
        return ()
    linears = (node for node in ops.linears(graph.body) if not ops.is_router(node, graph.nodes))
    left = (node.name for node in linears if decided.of(node.name).smoothing is None)
    return tuple(dict.fromkeys(map(within_layer, left)))


def _decide_ways(graph: Graph, chosen: Mapping[str, Variant], decided: Decisions) -> None:
    """How every matrix is rounded; a tied embedding as the head."""
    recipe = decided.recipe
    layers = (*ops.linears(graph.nodes), *ops.expert_layers(graph.nodes))
    lowest = {node.name: 8 if ops.is_router(node, graph.nodes) else recipe.lowest_bits for node in layers}
    lowest[graph.head.name] = 8 if recipe.head == "8" else 4
    for name, bits in lowest.items():
        decided.note(name, way=chosen[name].way if name in chosen else (bits, recipe.sigma))
    for node in ops.tables(graph.nodes):
        tied = node.inputs[1] == graph.head.inputs[1]
        way = decided.way(graph.head.name) if tied else (8, recipe.sigma)
        decided.note(node.name, way=way)


def _round_all(
    graph: Graph, windows: np.ndarray, decided: Decisions, progress: Progress, journal: Journal
) -> tuple[Graph, list[LayerReport]]:
    """Block by block: the integer graph, and a line for each linear layer."""
    groups = graph.blocks
    sweep = _Sweep(graph, windows, decided)
    done = sweep.go_on(journal)
    progress(done, len(groups))
    for i in range(done, len(groups)):
        local, before = load(graph, groups[i]), set(sweep.result.constants)
        transform(local, decided)
        sweep.block(local, [node for group in groups[i + 1 :] for node in group])
        added = {name: tensor for name, tensor in sweep.result.constants.items() if name not in before}
        journal.save(f"block-{i}", added)
        journal.save("quantize", (i + 1, sweep.result.nodes, sweep.layers, sweep.streams))
        progress(i + 1, len(groups))
    return sweep.result, sweep.layers


class _Sweep:
    """The integer graph as it grows, and the windows on their way through it."""

    def __init__(self, graph: Graph, windows: np.ndarray, decided: Decisions) -> None:
        self.result = Graph(inputs=graph.inputs, outputs=graph.outputs, metadata=dict(graph.metadata))
        self.layers: list[LayerReport] = []
        self.streams = Streams.of(windows)
        self._decided, self._recipe = decided, decided.recipe

    def go_on(self, journal: Journal) -> int:
        """Takes in the blocks that were done before; how many."""
        if (state := journal.load("quantize")) is None:
            return 0
        blocks = [journal.load(f"block-{i}") for i in range(state[0])]
        if None in blocks:
            return 0
        done, self.result.nodes, self.layers, self.streams = state
        self.result.constants.update(itertools.chain.from_iterable(block.items() for block in blocks))
        return int(done)

    def block(self, local: Graph, later: list[Node]) -> None:
        """Quantizes the linears of a block in order, each on the output of those before."""
        nodes, result, streams = local.nodes, self.result, self.streams
        starts = [i for i, node in enumerate(nodes) if ops.of(node.op).matrix] + [len(nodes)]
        if starts[0]:
            starts.insert(0, 0)
        for start, stop in itertools.pairwise(starts):
            first, rest, made = nodes[start], nodes[start + 1 : stop], []
            matrix = ops.of(first.op).matrix
            needed = [*nodes[stop:], *later]
            if matrix == "table":
                made = [self._embedding(Matrix(first, local, self._recipe))]
            elif matrix in ("linear", "experts"):
                if matrix == "linear":
                    operation, alone = self._linear(Matrix(first, local, self._recipe))
                else:
                    operation, alone = self._experts(first, local), False
                if needed:
                    run = functools.partial(execute.run, [execute.Step(first, operation)])
                    list(map(run, streams.quantized)) if alone else each(run, streams.quantized)
            else:
                rest = nodes[start:stop]
            copy(local, rest, result)
            if needed:
                execute.advance(execute.prepare(result, [*made, *rest]), streams.quantized, needed)
                execute.advance(execute.prepare(local, nodes[start:stop]), streams.floats, needed)

    def _linear(self, matrix: Matrix) -> tuple[Operation, bool]:
        """Appends a layer; returns what it computes, and whether a call of it keeps all cores busy."""
        rounded = self._rounded(matrix)
        emit_linear(matrix.node, rounded, self.result)
        operation, alone = rounded.operation()
        error = _error(matrix, operation, self.streams.quantized)
        self.layers.append(_report(matrix.node.name, [rounded], error, self._decided.of(matrix.node.name)))
        return operation, alone

    def _experts(self, node: Node, local: Graph) -> Operation:
        """Appends a layer of experts; returns what it computes."""
        reads = Reads.of(node, self.streams.quantized, experts_of(node, local))
        way, whole = self._decided.way(node.name), all_in_one(node, local, self._recipe)
        flattening = whole.flatten(reads.inputs(), way[0])
        rounded = []
        for number in range(reads.experts):
            matrix, rows = matrix_of(node, local, self._recipe, number), reads.rows(number)
            bias, grid = matrix.local.array(node.inputs[3]), matrix.grid(way)
            if len(rows):
                mean = calibrate.mean([rows]) if self._recipe.does("bias") else None
                integers, bias = self._fitted(matrix, bias, mean, (rows,), flattening, grid)
            else:
                integers = round_weights(matrix.weight, grid)
            rounded.append(Rounded(integers.astype(np.int8), grid, flattening, bias))
        emit_experts(node, rounded, self.result)
        operation = of_experts(rounded)
        error = error_of_experts(node, local, operation, reads)
        unreached = tuple(np.flatnonzero(reads.counts == 0).tolist())
        report = _report(node.name, rounded, error, self._decided.of(node.name))
        self.layers.append(dataclasses.replace(report, experts=reads.experts, unreached=unreached))
        return operation

    def _rounded(self, matrix: Matrix) -> Rounded:
        node, weight, recipe = matrix.node, matrix.weight, self._recipe
        way, bias = self._decided.way(node.name), matrix.local.array(node.inputs[2])
        inputs = [env[node.inputs[0]] for env in self.streams.quantized]
        flattening, grid = matrix.flatten(calibrate.inputs(inputs), way[0]), matrix.grid(way)
        if table := table_of(self.result, node):  # tied: rounded already
            return Rounded(self.result.totals(table).astype(np.float32), grid, flattening, bias)
        if not in_body(node.name) and way[0] == 8:
            return Rounded(round_weights(weight, grid), grid, flattening, bias)
        if not recipe.does("gptq") and not recipe.does("bias"):
            return Rounded(round_weights(weight, grid), grid, flattening, bias)
        mean = self.streams.mean(node.inputs[0]) if recipe.does("bias") else None
        integers, bias = self._fitted(matrix, bias, mean, inputs, flattening, grid)
        return Rounded(integers, grid, flattening, bias)

    def _fitted(
        self,
        matrix: Matrix,
        bias: np.ndarray,
        mean: np.ndarray | None,
        inputs: Sequence[np.ndarray],
        flattening: Flattening,
        grid: Grid,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Integers and bias of a layer for what it reads, values [..., k] of which the float model has this
        mean [k]."""
        weight, recipe = matrix.weight, self._recipe
        # What the quantized layer reads, of all windows: values [B, T, k] → [m, k]
        read = np.concatenate(each(lambda x: rounded_inputs(x.reshape(-1, x.shape[-1]), flattening), inputs))
        seen = calibrate.moments(read, centred=recipe.does("bias"))
        if recipe.does("gptq"):
            damping = recipe.damping_of(weight.shape[1], seen.rows)
            integers = gptq(weight, seen.hessian, grid, damping, recipe.does("order"))
        else:
            integers = round_weights(weight, grid)
        if mean is not None:
            kept = (integers * grid.steps[:, None]) @ seen.mean
            bias = (bias + weight @ mean - kept).astype(np.float32)
        return integers, bias

    def _embedding(self, matrix: Matrix) -> Node:
        """The FlatEmbedding that is appended."""
        grid = matrix.grid(self._decided.way(matrix.node.name))
        seen = self._decided.head_inputs if grid.bits == 4 else None
        integers = round_tied(matrix.weight, grid, seen, self._recipe)
        return emit_embedding(matrix.node, integers, grid, self.result)


def _error(matrix: Matrix, operation: Operation, envs: list[Env]) -> float:
    """‖ŷ − y‖² / ‖y‖² of the layer's outputs on what it reads, on a sample of the tokens; y: in float."""
    rows = [env[matrix.node.inputs[0]].reshape(-1, matrix.weight.shape[1]) for env in envs]
    every = -(-sum(map(len, rows)) // SAMPLE) | 1  # odd: a window's length does not divide by it
    x = np.concatenate([x[::every] for x in rows])
    (exact,) = execute.prepare(matrix.local, [matrix.node])
    (wanted,) = exact.run(x)
    (got,) = operation(x)
    size = _square(wanted)
    return _square(got - wanted) / size if size else 0.0


def _square(x: np.ndarray) -> float:
    return float(np.vdot(x, x))


def _report(name: str, rounded: Sequence[Rounded], error: float, decision: Decision) -> LayerReport:
    """Of the products that are a layer: one, or each expert's."""
    rows, columns = sum(len(one.integers) for one in rounded), rounded[0].integers.shape[1]
    flattening, bits = rounded[0].flattening, rounded[0].grid.bits
    return LayerReport(
        name=name,
        bits=bits,
        activation_bits=4 if flattening.levels < 127 else 8,
        rows=rows,
        columns=columns,
        alpha=decision.alpha,
        threshold=flattening.threshold,
        extra_columns=flattening.extra,
        double_groups=flattening.double_groups,
        excess=float(np.mean([excess_share(one.integers, one.grid) for one in rounded])),
        error=error,
        kl=decision.kl,
    )
