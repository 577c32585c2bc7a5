"""The sweep forward over the float model: looks at the inputs of all layers and chooses their smoothing.

Legend: k inputs, n outputs, B windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.progress import Progress

from . import calibrate, execute, sensitivity
from .calibrate import Inputs, Moments
from .journal import Journal
from .passes import keys, smooth
from .passes import split as splitting
from .passes.bits import Variant
from .passes.flatten import Flattening, flatten, flatten_by_token, rounded
from .passes.grid import Grid, Sizes, grid, refined, round_weights, weight_grid
from .passes.pieces import importance
from .passes.split import Split, by_size, split
from .recipe import Recipe
from .sensitivity import Way
from .vocabulary import head_inputs, is_tied

WINDOWS = 8  # on which smoothing is chosen
TRIED = 1 << 21  # weights of a layer on which a smoothing is tried, in rows spread evenly
PROBE = (4, 128)  # windows × tokens whose likelihood the gradients are of
# Of the KL that 8-bit activations cause in SmolLM2-135M, 83 % comes from the inputs of `down`, which no norm
# bounds, with a quarter of the weights. Weighted by work, these factors of `wide_channels` average about 1.
_WIDE = {"Norm": 0.5, "RotaryAttention": 1.0, "SwiGLU": 2.5}


@dataclass
class Survey:
    """What the sweeps found, by the name of the linear layer."""

    keys: dict[str, np.ndarray] = field(default_factory=dict)  # by attention node: s [g, d/2]
    splits: dict[str, Split] = field(default_factory=dict)
    smoothing: dict[str, tuple[float | None, np.ndarray]] = field(default_factory=dict)  # α, s [k]
    orders: dict[str, Split] = field(default_factory=dict)  # after smoothing
    flattenings: dict[str, dict[int, Flattening]] = field(default_factory=dict)  # by the weights' bits
    unexplained: dict[str, float] = field(default_factory=dict)
    variants: dict[str, list[Variant]] = field(default_factory=dict)
    probes: list[execute.Env] = field(default_factory=list)  # a few windows as each block reads them
    head_inputs: Moments | None = None  # where the head is tied and may get 4 bits


def lowest_bits(recipe: Recipe) -> int:
    return 8 if recipe.weight_bits == "8" else 4


def flatten_inputs(inputs: Inputs, node: Node, local: Graph, bits: int, recipe: Recipe) -> Flattening:
    """How a layer with weights of `bits` quantizes such inputs."""
    levels = 127 if bits == 8 else recipe.low_levels
    wide = wide_share(node, local, recipe)
    if recipe.activations == "token":
        return flatten_by_token(inputs, levels, wide)
    return flatten(inputs.maxima * recipe.margin, levels, wide)


def wide_share(node: Node, local: Graph, recipe: Recipe) -> float:
    """The share of the layer's input channels that flattening may widen."""
    if not recipe.does("flatten"):
        return 0.0
    if recipe.activations == "token" and node.name.rpartition(".")[2] in recipe.two_digits:
        return 1.0
    made_by = next((other.op for other in local.nodes if node.inputs[0] in other.outputs), "Norm")
    return min(1.0, recipe.wide_channels * _WIDE.get(made_by, 1.0))


def transform(local: Graph, found: Survey) -> None:
    """Applies to the block's constants what the survey decided; the function stays the same."""
    for fold in smooth.folds(local.nodes, local):
        if fold.linear.name in found.splits:
            splitting.apply(local, fold, found.splits[fold.linear.name])
    for fold in smooth.folds(local.nodes, local):  # again: splitting adds channels
        if fold.linear.name in found.smoothing:
            smooth.apply(local, fold, found.smoothing[fold.linear.name][1])
        if fold.linear.name in found.orders:
            splitting.apply(local, fold, found.orders[fold.linear.name])


def layer_grid(weight: np.ndarray, node: Node, local: Graph, way: Way, recipe: Recipe) -> Grid:
    """The grid of a layer's weights; outside the body every row has a step of its own."""
    per_row = recipe.weight_scale == "channel" or not in_body(node)
    nested = recipe.nested and in_body(node)
    return weight_grid(weight, smooth.parts(node, local.nodes, local), way[0], per_row, way[1], nested)


def in_body(node: Node) -> bool:
    """Whether it belongs to a layer, and not to embedding or head."""
    return node.name.startswith("layers.")


def load(graph: Graph, nodes: Sequence[Node]) -> Graph:
    """The nodes with their constants in memory, as a graph of its own that passes may change."""
    names = {name for node in nodes for name in node.inputs if name in graph.constants}
    return Graph(list(nodes), {name: graph.constants[name] for name in names})


def survey(graph: Graph, recipe: Recipe, windows: np.ndarray, progress: Progress, journal: Journal) -> Survey:
    """`windows` [B, T] of calibration tokens; `progress` is told (blocks, all blocks)."""
    groups = execute.blocks(graph)
    if recipe.weight_bits != "auto" and not recipe.does("smooth") and not recipe.does("split"):
        return Survey()
    envs = execute.chunks(windows[:: max(1, len(windows) // WINDOWS)][:WINDOWS])
    probe = execute.chunks(windows[-PROBE[0] :, : PROBE[1]], PROBE[0])[0]
    done, found, envs, probe = journal.load("survey") or (0, Survey(), envs, probe)
    progress(done, len(groups))
    for i in range(done, len(groups) - 1):
        local = load(graph, groups[i])
        later = [node for group in groups[i + 1 :] for node in group]
        found.probes.append(dict(probe))
        execute.advance(execute.prepare(local, local.nodes), [probe], later)
        _look(local, envs, later, recipe, found)
        journal.save("survey", (i + 1, found, envs, probe))
        progress(i + 1, len(groups))
    if done < len(groups):
        found.probes.append(probe)
        if recipe.head != "8" and recipe.does("gptq") and is_tied(graph):
            found.head_inputs = head_inputs(graph, groups[-1], envs)
        journal.save("survey", (len(groups), found, [], {}))
    progress(len(groups), len(groups))
    return found


def _look(local: Graph, envs: list[execute.Env], later: list[Node], recipe: Recipe, found: Survey) -> None:
    """Runs the block on every chunk and chooses what its inputs suggest."""
    seen, reached, values = _run_and_look(local, envs, later)
    if recipe.does("smooth") and recipe.kv == "int8":
        found.keys |= {name: keys.scales(most) for name, most in reached.items()}
    if recipe.weight_scale == "tensor" and recipe.does("split"):
        _split(local, seen, recipe, found)
    if recipe.does("smooth"):
        _smooth(local, seen, recipe, found)
    if recipe.does("flatten"):
        _reorder(local, seen, recipe, found)
    if recipe.weight_bits != "auto":
        return
    for node in sensitivity.linears(local.nodes):
        found.flattenings[node.name] = {
            bits: flatten_inputs(seen[node.name], node, local, bits, recipe) for bits in (4, 8)
        }
    for name, x in values.items() if recipe.does("gptq") else ():
        s = found.smoothing[name][1] if name in found.smoothing else np.ones(x.shape[1], np.float32)
        s = s if len(s) == x.shape[1] else np.ones(x.shape[1], np.float32)  # of a layer that was split
        found.unexplained[name] = sensitivity.unexplained(x, s, recipe.damping_of(x.shape[1], len(x)))


def _run_and_look(
    local: Graph, envs: list[execute.Env], later: list[Node]
) -> tuple[dict[str, Inputs], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs the block on every chunk; what its linears read, by name (in short, and all of it as [m, k]), and
    `keys.reach` of its attention."""
    steps = execute.prepare(local, local.nodes)
    linears = sensitivity.linears(local.nodes)
    attentions = keys.readers(local.nodes)
    read: dict[str, list[np.ndarray]] = {node.name: [] for node in linears}
    reached: dict[str, list[np.ndarray]] = {node.name: [] for node in attentions}
    execute.advance(steps, envs, [*linears, *attentions, *later])
    for env in envs:
        for node in linears:
            read[node.name].append(env[node.inputs[0]])
        for node in attentions:
            reached[node.name].append(keys.reach(node, *(env[name] for name in node.inputs[:3])))
        execute.keep(env, later)
    inputs = {name: calibrate.inputs(values) for name, values in read.items()}
    rows = {name: np.concatenate([x.reshape(-1, x.shape[-1]) for x in xs]) for name, xs in read.items()}
    return inputs, {name: np.max(values, 0) for name, values in reached.items()}, rows


def _split(local: Graph, seen: dict[str, Inputs], recipe: Recipe, found: Survey) -> None:
    """Splits the intermediate channels of the block's gated MLP."""
    for fold in smooth.folds(local.nodes, local):
        if not smooth.gated(fold, local.nodes):
            continue
        name = fold.linear.name
        weight = local.array(fold.linear.inputs[1])
        found_split = split(
            seen[name].maxima, weight, recipe.split_channels, wide_share(fold.linear, local, recipe)
        )
        if found_split is not None:
            splitting.apply(local, fold, found_split)
            seen[name] = seen[name].picked(found_split.channel)
            found.splits[name] = found_split


def _smooth(local: Graph, seen: dict[str, Inputs], recipe: Recipe, found: Survey) -> None:
    """Chooses and applies the smoothing of every layer of the block that allows it."""
    for fold in smooth.folds(local.nodes, local):
        inputs = seen[fold.linear.name]
        weight = local.array(fold.linear.inputs[1])
        error = _error(fold.linear, weight, inputs, local, recipe)
        wide = wide_share(fold.linear, local, recipe)
        alpha, s = smooth.search(inputs, weight, fold.index, recipe.alphas, wide, error)
        smooth.apply(local, fold, s)
        seen[fold.linear.name] = inputs.divided(s)
        found.smoothing[fold.linear.name] = alpha, s


def _error(
    node: Node, weight: np.ndarray, inputs: Inputs, local: Graph, recipe: Recipe
) -> Callable[[np.ndarray], float]:
    """s → the error of the quantized layer with that smoothing, on the sample and some rows of the weights:
    the mean over the sample of ‖y − ŷ‖² / (‖y‖² + its median), so that no single token decides."""
    bits, per_row = lowest_bits(recipe), recipe.weight_scale == "channel"
    some = slice(None, None, -(-weight.size // TRIED))
    rows = np.ascontiguousarray(weight[some])
    wanted = inputs.sample @ rows.T
    size = np.einsum("mn,mn->m", wanted, wanted)
    size += np.median(size) + np.float32(1e-30)
    parts = smooth.parts(node, local.nodes, local)
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
        flattening = flatten_inputs(divided, node, local, bits, recipe)
        found = grid_of(scaled, s)
        kept = round_weights(scaled, found)
        kept *= found.steps[:, None].astype(np.float32)
        wrong = rounded(divided.sample, flattening) @ kept.T
        wrong -= wanted
        return float(np.mean(np.einsum("mn,mn->m", wrong, wrong) / size))

    return error


def _reorder(local: Graph, seen: dict[str, Inputs], recipe: Recipe, found: Survey) -> None:
    """Sorts the intermediate channels of the block's gated MLP; nothing else changes."""
    for fold in smooth.folds(local.nodes, local):
        if smooth.gated(fold, local.nodes):
            name = fold.linear.name
            by_token = recipe.activations == "token"
            found.orders[name] = by_size(importance(seen[name].sample) if by_token else seen[name].maxima)
            splitting.apply(local, fold, found.orders[name])
            seen[name] = seen[name].picked(found.orders[name].channel)
