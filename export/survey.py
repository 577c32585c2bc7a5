"""One sweep over the float model: the smoothing of each layer, and what each layer alone costs at 4 bits.

The KL of a layer is measured at the very end: the float model with that one layer quantized, on a few short
windows. All these variants go through the model together, layer by layer, so weights are read once.

Legend: k inputs, n outputs, B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from runtime.graph import Graph, Node

from . import calibrate, execute
from .calibrate import Inputs
from .parallel import each
from .passes import keys, smooth
from .passes import split as splitting
from .passes.bits import Choice, within_bytes, within_kl
from .passes.flatten import Flattening, flatten
from .passes.flatten import quantize as to_steps
from .passes.grid import Grid, Sizes, excess_share, grid, round_weights, weight_grid
from .passes.split import Split, by_size, split
from .recipe import Recipe
from .vocabulary import head_hessian, is_tied

WINDOWS = 8  # on which smoothing is chosen
TRIED = 1 << 21  # weights of a layer on which a smoothing is tried, in rows spread evenly
PROBE = (2, 128)  # windows × tokens on which a layer's KL is measured: 256 positions rank layers well
# Of the KL that 8-bit activations cause in SmolLM2-135M, 83 % comes from the inputs of `down`, which no norm
# bounds, with a quarter of the weights. Weighted by work, these factors of `wide_channels` average about 1.
_WIDE = {"Norm": 0.5, "RotaryAttention": 1.0, "SwiGLU": 2.5}
_EXCESS_BYTES = 2.16  # an excess element with its share of fillers, at 1 % of the elements


@dataclass
class Survey:
    """What the sweep found, by the name of the linear layer."""

    keys: dict[str, np.ndarray] = field(default_factory=dict)  # by attention node: s [g, d/2]
    splits: dict[str, Split] = field(default_factory=dict)
    smoothing: dict[str, tuple[float | None, np.ndarray]] = field(default_factory=dict)  # α, s [k]
    orders: dict[str, Split] = field(default_factory=dict)  # after smoothing
    choices: dict[str, Choice] = field(default_factory=dict)
    head_hessian: np.ndarray | None = None  # of the head's inputs, where it is tied and has 4 bits

    def kl(self, name: str) -> float | None:
        return self.choices[name].kl if name in self.choices else None


def choose_bits(found: Survey, recipe: Recipe) -> dict[str, int]:
    """Weight bits by layer name; layers outside the body are not in it."""
    if recipe.weight_bits != "auto":
        return {}
    if recipe.max_kl is not None:
        return within_kl(found.choices, recipe.max_kl)
    return within_bytes(found.choices, recipe.bits_per_weight)


def lowest_bits(recipe: Recipe) -> int:
    return 8 if recipe.weight_bits == "8" else 4


def flatten_inputs(maxima: np.ndarray, node: Node, local: Graph, bits: int, recipe: Recipe) -> Flattening:
    """How a layer with weights of `bits` quantizes inputs of these maxima [k]."""
    levels = 127 if bits == 8 else recipe.low_levels
    return flatten(maxima * recipe.margin, levels, wide_share(node, local, recipe))


def wide_share(node: Node, local: Graph, recipe: Recipe) -> float:
    """The share of the layer's input channels that flattening may widen."""
    if not recipe.does("flatten"):
        return 0.0
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


def layer_grid(weight: np.ndarray, node: Node, local: Graph, bits: int, recipe: Recipe) -> Grid:
    """The grid of a body layer's weights."""
    return weight_grid(
        weight, smooth.parts(node, local.nodes, local), bits, recipe.weight_scale == "channel", recipe.sigma
    )


def load(graph: Graph, nodes: Sequence[Node]) -> Graph:
    """The nodes with their constants in memory, as a graph of its own that passes may change."""
    names = {name for node in nodes for name in node.inputs if name in graph.constants}
    return Graph(list(nodes), {name: graph.constants[name] for name in names})


def survey(graph: Graph, recipe: Recipe, windows: np.ndarray, tell: Callable[[], None]) -> Survey:
    """`windows` [B, T] of calibration tokens; calls `tell` after every block."""
    found = Survey()
    measure = recipe.weight_bits == "auto"
    groups = execute.blocks(graph)
    if not measure and not recipe.does("smooth") and not recipe.does("split"):
        for _ in groups:
            tell()
        return found
    envs = execute.chunks(windows[:: max(1, len(windows) // WINDOWS)][:WINDOWS])
    probe = execute.chunks(windows[-PROBE[0] :, : PROBE[1]], PROBE[0])[0]
    variants: dict[str, execute.Env] = {}
    for i, nodes in enumerate(groups[:-1]):
        local = load(graph, nodes)
        later = [node for group in groups[i + 1 :] for node in group]
        seen, reached = _run_and_look(local, envs, later)
        if recipe.does("smooth") and recipe.kv == "int8":
            found.keys |= {name: keys.scales(most) for name, most in reached.items()}
        if recipe.weight_scale == "tensor" and recipe.does("split"):
            _split(local, seen, recipe, found)
        if recipe.does("smooth"):
            _smooth(local, seen, recipe, found)
        if recipe.does("flatten"):
            _reorder(local, seen, found)
        if measure:
            _branch(local, seen, recipe, found, probe, variants, later)
        tell()
    if recipe.head_bits == "4" and recipe.does("gptq") and is_tied(graph):
        found.head_hessian = head_hessian(graph, groups[-1], envs)
    if measure:
        _divergences(execute.prepare(graph, groups[-1]), probe, variants, found)
    tell()
    return found


def _run_and_look(
    local: Graph, envs: list[execute.Env], later: list[Node]
) -> tuple[dict[str, Inputs], dict[str, np.ndarray]]:
    """Runs the block on every chunk; what its linears read, by name, and `keys.reach` of its attention."""
    steps = execute.prepare(local, local.nodes)
    linears = [node for node in local.nodes if node.op == "Linear"]
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
    return inputs, {name: np.max(values, 0) for name, values in reached.items()}


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
            return weight_grid(rows, [], bits, True, recipe.sigma)
        steps = np.empty(len(weight))
        for part, size in zip(parts, sizes, strict=True):
            steps[part] = size.scaled(s).step(bits, recipe.sigma)
        return grid(bits, steps[some])

    def error(s: np.ndarray) -> float:
        scaled, divided = rows * s, inputs.divided(s)
        flattening = flatten_inputs(divided.maxima, node, local, bits, recipe)
        found = grid_of(scaled, s)
        kept = round_weights(scaled, found)
        kept *= found.steps[:, None].astype(np.float32)
        read = to_steps(divided.sample, flattening)
        read *= np.float32(flattening.step)
        wrong = read @ kept.T
        wrong -= wanted
        return float(np.mean(np.einsum("mn,mn->m", wrong, wrong) / size))

    return error


def _reorder(local: Graph, seen: dict[str, Inputs], found: Survey) -> None:
    """Sorts the intermediate channels of the block's gated MLP; nothing else changes."""
    for fold in smooth.folds(local.nodes, local):
        if smooth.gated(fold, local.nodes):
            name = fold.linear.name
            found.orders[name] = by_size(seen[name].maxima)
            splitting.apply(local, fold, found.orders[name])
            seen[name] = seen[name].picked(found.orders[name].channel)


def _branch(
    local: Graph,
    seen: dict[str, Inputs],
    recipe: Recipe,
    found: Survey,
    probe: execute.Env,
    variants: dict[str, execute.Env],
    later: list[Node],
) -> None:
    """Takes all variants through the float block, and adds one for each of its linears, quantized."""
    steps = execute.prepare(local, local.nodes)
    before = dict(probe)
    execute.advance(steps, [probe, *variants.values()], later)

    def branch(at: int) -> tuple[str, execute.Env]:
        node, env = steps[at].node, dict(before)
        changed = execute.Step(node, _try_low(node, local, seen[node.name], recipe, found))
        execute.run([*steps[:at], changed, *steps[at + 1 :]], env)
        execute.keep(env, later)
        return node.name, env

    variants.update(each(branch, [at for at, step in enumerate(steps) if step.node.op == "Linear"]))


def _try_low(node: Node, local: Graph, inputs: Inputs, recipe: Recipe, found: Survey) -> execute.Operation:
    """The layer at 4 bits, rounded to nearest; notes what it would take."""
    weight, bias = local.array(node.inputs[1]), local.array(node.inputs[2])
    grid = layer_grid(weight, node, local, 4, recipe)
    flattening = flatten_inputs(inputs.maxima, node, local, 4, recipe)
    integers = round_weights(weight, grid)
    tables = 8 * len(bias) + 4 * weight.shape[1] + 12 * len(flattening.source)  # bytes
    low = weight.size * (0.5 + _EXCESS_BYTES * excess_share(integers, 4))
    found.choices[node.name] = Choice(0.0, weight.size, tables + low, tables + weight.size)
    scale = (flattening.step * grid.steps).astype(np.float32)
    return execute.flat_linear(integers, scale, bias, flattening.inverse_scale, flattening.limit)


def _divergences(
    last: list[execute.Step], probe: execute.Env, variants: dict[str, execute.Env], found: Survey
) -> None:
    execute.run(last, probe)
    # The first position sees only itself; its logits hang on the enormous activation of the attention sink.
    wanted = execute.log_softmax(probe["logits"][:, 1:])

    def measure(name: str) -> None:
        env = variants[name]
        execute.run(last, env)
        kl = execute.divergence(wanted, execute.log_softmax(env.pop("logits")[:, 1:]))
        found.choices[name] = replace(found.choices[name], kl=kl)

    each(measure, variants)
