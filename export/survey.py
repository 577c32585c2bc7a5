"""The sweep forward over the float model: looks at the inputs of all layers and decides on their smoothing.

Legend: k inputs, n outputs, B windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.progress import Progress

from . import calibrate, execute, ops, sensitivity
from .calibrate import Inputs
from .constants import load
from .decisions import Decision, Decisions, Matrix
from .experts import Reads, all_in_one, experts_of, matrix_of
from .journal import Journal
from .ops.function import Env
from .passes import keys, smooth
from .passes import split as splitting
from .passes.flatten import rounded
from .passes.grid import Grid, Sizes, grid, refined, round_weights, weight_grid
from .passes.pieces import importance
from .passes.smooth import Fold, Smoothing, Tied
from .passes.split import Split, by_size, split
from .recipe import Recipe
from .vocabulary import head_inputs, is_tied

WINDOWS = 8  # on which smoothing is chosen
TRIED = 1 << 21  # weights of a layer on which a smoothing is tried, in rows spread evenly
EXPERT_TRIED = 1 << 17  # the same of one expert
EXPERT_ROWS, FEWEST_ROWS = 128, 8  # of an expert's inputs: on which that is tried, and below which it is not
PROBE = (4, 128)  # windows × tokens whose likelihood the gradients are of


def survey(
    graph: Graph, recipe: Recipe, windows: np.ndarray, progress: Progress, journal: Journal
) -> Decisions:
    """`windows` [B, T] of calibration tokens; `progress` is told (blocks, all blocks)."""
    groups = graph.blocks
    if recipe.weight_bits != "auto" and not recipe.does("smooth") and not recipe.does("split"):
        return Decisions(recipe)
    envs = execute.chunks(windows[:: max(1, len(windows) // WINDOWS)][:WINDOWS])
    probe = execute.chunks(windows[-PROBE[0] :, : PROBE[1]], PROBE[0])[0]
    done, decided, envs, probe = journal.load("survey") or (0, Decisions(recipe), envs, probe)
    progress(done, len(groups))
    for i in range(done, len(groups) - 1):
        local = load(graph, groups[i])
        later = [node for group in groups[i + 1 :] for node in group]
        decided.probes.append(dict(probe))
        execute.advance(execute.prepare(local, local.nodes), [probe], later)
        _look(local, envs, later, decided)
        journal.save("survey", (i + 1, decided, envs, probe))
        progress(i + 1, len(groups))
    if done < len(groups):
        decided.probes.append(probe)
        if recipe.head != "8" and recipe.does("gptq") and is_tied(graph):
            decided.head_inputs = head_inputs(graph, groups[-1], envs)
        journal.save("survey", (len(groups), decided, [], {}))
    progress(len(groups), len(groups))
    return decided


def _look(local: Graph, envs: list[Env], later: list[Node], decided: Decisions) -> None:
    """Runs the block on every chunk and decides what its inputs suggest."""
    recipe = decided.recipe
    inputs, reached, values, reads = _run_and_look(local, envs, later)
    if recipe.does("smooth") and recipe.kv == "int8":
        decided.keys |= {name: keys.scales(most) for name, most in reached.items()}
    block = _Block(local, recipe, inputs, reads)
    splits = block.split() if recipe.weight_scale == "tensor" and recipe.does("split") else {}
    smoothings = block.smooth() if recipe.does("smooth") else {}
    orders = block.reorder() if recipe.does("flatten") else {}
    for node in (*ops.linears(local.nodes), *ops.expert_layers(local.nodes)):
        name = node.name
        alpha, s = smoothings.get(name, (None, None))
        decided.layers[name] = Decision(splits.get(name), s, alpha, orders.get(name))
        if recipe.weight_bits != "auto" or ops.is_router(node, local.nodes):
            continue
        matrix = block.matrix(node)
        flattenings = {bits: matrix.flatten(block.seen[name], bits) for bits in (4, 8)}
        decided.note(name, flattenings=flattenings)
        if recipe.does("gptq"):
            read = (block.reads[name].of_most(), None) if name in block.reads else (values[name], s)
            decided.note(name, unexplained=_unexplained(*read, recipe))


def _unexplained(x: np.ndarray, s: np.ndarray | None, recipe: Recipe) -> float:
    """`sensitivity.unexplained` of inputs x [m, k] under smoothing s."""
    if s is None or len(s) != x.shape[1]:  # of a layer that was split
        s = np.ones(x.shape[1], np.float32)
    return sensitivity.unexplained(x, s, recipe.damping_of(x.shape[1], len(x)))


def _run_and_look(
    local: Graph, envs: list[Env], later: list[Node]
) -> tuple[dict[str, Inputs], dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Reads]]:
    """Runs the block on every chunk; what its linears read, by name (in short, and all of it as [m, k]),
    `keys.reach` of its attention, and what its layers of experts read."""
    steps = execute.prepare(local, local.nodes)
    linears, of_experts = ops.linears(local.nodes), ops.expert_layers(local.nodes)
    meetings = keys.meetings(local.nodes)
    read: dict[str, list[np.ndarray]] = {node.name: [] for node in linears}
    routed: dict[str, list[Env]] = {node.name: [] for node in of_experts}
    reached: dict[str, list[np.ndarray]] = {one.name: [] for one in meetings}
    execute.advance(steps, envs, [*linears, *of_experts, *(one.attend for one in meetings), *later])
    for env in envs:
        for node in linears:
            read[node.name].append(env[node.inputs[0]])
        for node in of_experts:
            routed[node.name].append({name: env[name] for name in node.inputs if name in env})
        for one in meetings:
            reached[one.name].append(keys.reach(env[one.q], env[one.k]))
        execute.keep(env, later)
    inputs = {name: calibrate.inputs(values) for name, values in read.items()}
    rows = {name: np.concatenate([x.reshape(-1, x.shape[-1]) for x in xs]) for name, xs in read.items()}
    reads = {node.name: Reads.of(node, routed[node.name], experts_of(node, local)) for node in of_experts}
    inputs |= {name: one.inputs() for name, one in reads.items()}
    return inputs, {name: np.max(values, 0) for name, values in reached.items()}, rows, reads


@dataclass
class _Block:
    """A block while it is decided on. What is chosen is done to `local`, and to what its linears read."""

    local: Graph
    recipe: Recipe
    seen: dict[str, Inputs]  # by the linear's name
    reads: dict[str, Reads]  # by the name of a layer of experts

    def matrix(self, node: Node) -> Matrix:
        """Of a linear layer, or of all experts together."""
        of_experts = node.name in self.reads
        return (all_in_one if of_experts else Matrix)(node, self.local, self.recipe)

    def split(self) -> dict[str, Split]:
        """Splits the intermediate channels of gated MLPs."""
        splits = {}
        for fold in smooth.folds(self.local):
            if not fold.gated:
                continue
            name, matrix = fold.linear.name, Matrix(fold.linear, self.local, self.recipe)
            budget, maxima = self.recipe.split_channels, self.seen[name].maxima
            finest = split(maxima, matrix.weight, budget, matrix.wide_share)
            if finest is not None:
                self._apply(fold, finest)
                splits[name] = finest
        return splits

    def smooth(self) -> dict[str, Smoothing]:
        """Chooses and applies the smoothing of every layer that allows it."""
        smoothings = {}
        for fold in smooth.folds(self.local):
            name, tied = fold.linear.name, smooth.Tied(fold.index)
            if fold.by_expert:
                alpha, s = None, self._by_expert(fold.linear, tied)
            else:
                alpha, s = self._search(self.matrix(fold.linear), self.seen[name], tied, TRIED)
            smooth.apply(self.local, fold, s)
            for node in (fold.linear, *fold.others):
                if node.name in self.reads:
                    self.reads[node.name] = self.reads[node.name].divided(s)
                    self.seen[node.name] = self.reads[node.name].inputs()
                else:
                    self.seen[node.name] = self.seen[node.name].divided(s)
            smoothings[name] = alpha, s
        return smoothings

    def _search(self, matrix: Matrix, inputs: Inputs, tied: Tied, tried: int) -> Smoothing:
        candidates = tied.candidates(inputs, matrix.weight, self.recipe.alphas)
        return smooth.search(inputs, tied, candidates, matrix.wide_share, _error(matrix, inputs, tried))

    def _by_expert(self, node: Node, tied: Tied) -> np.ndarray:
        """s [E, k], each expert's on some of its rows and weights; ones for those that have too few."""
        reads, found = self.reads[node.name], []
        for number in range(reads.experts):
            rows = reads.rows(number, EXPERT_ROWS)
            matrix = matrix_of(node, self.local, self.recipe, number)
            if len(rows) < FEWEST_ROWS:
                found.append(np.ones(rows.shape[1], np.float32))
            else:
                found.append(self._search(matrix, calibrate.inputs([rows]), tied, EXPERT_TRIED)[1])
        return np.stack(found)

    def reorder(self) -> dict[str, Split]:
        """Sorts the intermediate channels of gated MLPs; nothing else changes."""
        orders = {}
        for fold in smooth.folds(self.local):
            if fold.gated:
                inputs, by_token = self.seen[fold.linear.name], self.recipe.activations == "token"
                order = by_size(importance(inputs.sample) if by_token else inputs.maxima)
                self._apply(fold, order)
                orders[fold.linear.name] = order
        return orders

    def _apply(self, fold: Fold, chosen: Split) -> None:
        splitting.apply(self.local, fold, chosen)
        name = fold.linear.name
        self.seen[name] = self.seen[name].picked(chosen.channel)


def _error(matrix: Matrix, inputs: Inputs, tried: int) -> Callable[[np.ndarray], float]:
    """s → the error of the quantized layer with that smoothing, on the sample and some rows of the weights:
    the mean over the sample of ‖y − ŷ‖² / (‖y‖² + its median), so that no single token decides."""
    recipe, weight, parts = matrix.recipe, matrix.weight, matrix.parts
    bits, per_row = recipe.lowest_bits, recipe.weight_scale == "channel"
    some = slice(None, None, -(-weight.size // tried))
    rows = np.ascontiguousarray(weight[some])
    wanted = inputs.sample @ rows.T
    size = np.einsum("mn,mn->m", wanted, wanted)
    size += np.median(size) + np.float32(1e-30)
    sizes = [] if per_row else [Sizes.of(weight[part]) for part in parts]

    def grid_of(rows: np.ndarray, s: np.ndarray) -> Grid:
        if per_row:
            return weight_grid(rows, [], bits, True, recipe.sigma, recipe.nested)
        steps, coarse = np.empty(len(weight)), 4 if recipe.nested else bits
        for part, size in zip(parts, sizes, strict=True):
            steps[part] = size.scaled(s).step(coarse, recipe.sigma)
        found = grid(coarse, steps[some])
        return refined(found) if recipe.nested else found

    def error(s: np.ndarray) -> float:
        scaled, divided = rows * s, inputs.divided(s)
        flattening = matrix.flatten(divided, bits)
        found = grid_of(scaled, s)
        kept = round_weights(scaled, found)
        kept *= found.steps[:, None].astype(np.float32)
        wrong = rounded(divided.sample, flattening) @ kept.T
        wrong -= wanted
        return float(np.mean(np.einsum("mn,mn->m", wrong, wrong) / size))

    return error
