"""Smoothing: range moves from an activation channel into its weights, where the graph allows it for free.

Per channel, x / s and W · s with s = max|x|^α / max|W|^(1 − α) (SmoothQuant, arXiv 2211.10438). x / s costs
nothing where x is made by something linear in a vector of weights:

    norm ─► linear                             the norm's weight takes 1 / s, for all who read it
    qkv ─► heads ─► append ─► attend ─► out    the rows of v do, shared by the queries of one key/value head
    gate, up ─► act(gate) · up ─► down         the rows of up do; of experts, each its own
    up ─► max(up, 0)² ─► down                  the rows of up take √(1 / s)

Which function lets a scale through, and which takes it, each says itself (`ops`: origin, scale).

Which s is best is searched per layer, by the output error under the quantizer that will be used: the formula
at several α, the same with root mean squares in the place of maxima (the error of 4-bit weights with a step
of so many σ is least at α = 0.5 of that), and some that only tame weight columns beyond a quantile of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.export import ops
from flatlm.export.calibrate import Inputs
from flatlm.export.ops.function import Channels
from flatlm.export.parallel import each
from flatlm.runtime.format.graph import Graph, Node, Tensor

from .flatten import box_threshold
from .pieces import MAX_PIECES

FENCES = (0.5, 0.9, 0.98)
RMS_ALPHAS = (0.35, 0.5)
_LEAST = 1e-5  # as in SmoothQuant: a channel that never speaks is not scaled up without end

Smoothing = tuple[float | None, np.ndarray]  # α (None: not by the formula), s [k]


@dataclass(frozen=True, slots=True)
class Fold:
    """Input channel j of `linear` may be divided by s[j] by dividing channel index[j] that `source` makes."""

    linear: Node
    source: Node  # whose constants take the scale: a norm or a linear
    index: np.ndarray  # int64 [k]; channels with the same index share one s
    width: int  # channels that `source` makes
    between: tuple[Node, ...] = ()  # through which the scale goes, from the linear to the source
    power: int = 1  # by which it grows on that way
    others: tuple[Node, ...] = ()  # that read the same, and are divided with it: a router beside experts

    @property
    def by_expert(self) -> bool:
        """Whether both ends are experts, each of which may have an s of its own: s is [E, k]."""
        return ops.of(self.source.op).matrix == "experts"

    @property
    def gated(self) -> bool:
        """Whether each input channel is made of channels of its own, as those of silu(gate) · up are."""
        alone = len(self.between) == 1 and not self.by_expert
        return alone and ops.of(self.between[0].op).rows is not None

    def picked(self, channel: np.ndarray) -> np.ndarray:
        """Input channels of the linear, of a `gated` one → the channels of `source` they are made of."""
        (gate,) = self.between
        rows = ops.of(gate.op).rows
        assert rows is not None, gate.op
        return rows(gate, channel, len(self.index))


def folds(block: Graph) -> list[Fold]:
    """Every fold of the block; a linear has none whose input comes from elsewhere, or is read by something
    else than linears. Of several that read one value the largest stands for all.
    """
    producer = {name: node for node in block.nodes for name in node.outputs}
    readers: dict[str, int] = {}
    for node in block.nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    together: dict[str, list[Node]] = {}
    for node in block.nodes:
        if ops.of(node.op).matrix in ("linear", "experts"):
            together.setdefault(node.inputs[0], []).append(node)
    found = (_fold(nodes, producer, readers, block) for nodes in together.values())
    return [fold for fold in found if fold is not None]


def _fold(
    linears: list[Node], producer: Mapping[str, Node], readers: Mapping[str, int], graph: Graph
) -> Fold | None:
    """From linears back through functions that let a scale through, to one that can take it."""
    linear, *others = sorted(linears, key=lambda node: -np.prod(graph.constants[node.inputs[1]].shape))
    value, width = linear.inputs[0], graph.constants[linear.inputs[1]].shape[-1]
    channels, between = Channels(value, np.arange(width), width), list[Node]()
    alone = all(readers[node.inputs[1]] == 1 for node in linears)  # a tied head's weight is not
    while alone := alone and readers[channels.value] == (1 if between else len(linears)):
        maker = producer.get(channels.value)
        if maker is None:
            return None
        function = ops.of(maker.op)
        if function.scale is not None:
            steps = tuple(between)
            return Fold(linear, maker, channels.index, channels.width, steps, channels.power, tuple(others))
        found = function.origin(graph, maker, channels) if function.origin else None
        if found is None:
            return None
        channels = found
        between.append(maker)
    return None


def parts(linear: Node, graph: Graph) -> list[slice]:
    """The row ranges of a fused layer that were tensors of their own: q, k, v or gate, up."""
    rows = graph.constants[linear.inputs[1]].shape[0]
    reader = next((node for node in graph.nodes if linear.outputs[0] in node.inputs), None)
    if reader is None or (found := ops.of(reader.op).parts) is None:
        return [slice(0, rows)]
    return found(reader, rows)


@dataclass(frozen=True, slots=True)
class Tied:
    """The channels of a layer's input of which those with the same `index` (int64 [k]) share one s."""

    index: np.ndarray

    def largest(self, values: np.ndarray) -> np.ndarray:
        """Each channel's value becomes the largest among the channels of the same index."""
        top = np.zeros(self.index.max() + 1)
        np.maximum.at(top, self.index, values)
        return np.asarray(top[self.index])

    def scales(self, reach: np.ndarray, peak: np.ndarray, alpha: float) -> np.ndarray:
        """s float32 [k] with geometric mean 1, from a size of the inputs and one of the weight columns, both
        [k]: of tied channels the largest.
        """
        exponent = alpha * np.log(self.largest(reach).clip(_LEAST))
        exponent -= (1 - alpha) * np.log(self.largest(peak).clip(_LEAST))
        s: np.ndarray = np.exp(exponent - exponent.mean()).astype(np.float32)
        return s

    def fence(self, peak: np.ndarray, quantile: float) -> np.ndarray:
        """s float32 [k] that brings weight columns of these maxima down to a quantile of them, else 1."""
        peak = self.largest(peak).clip(_LEAST)
        s: np.ndarray = np.minimum(1, np.quantile(peak, quantile) / peak).astype(np.float32)
        return s

    def relieve(self, maxima: np.ndarray, s: np.ndarray, wide: float) -> np.ndarray:
        """s, larger where x / s would flatten into more than the 127 columns there can be."""
        reach = self.largest(maxima / s)
        return (s * np.maximum(1, reach / (MAX_PIECES * box_threshold(maxima / s, wide)))).astype(np.float32)

    def candidates(self, inputs: Inputs, weight: np.ndarray, alphas: Sequence[float]) -> list[Smoothing]:
        """What may be tried: nothing, fences, and the formula by maxima and by root mean squares."""
        peak = np.abs(weight).max(0)
        found: list[Smoothing] = [(None, np.ones(len(self.index), np.float32))]
        found += [(None, self.fence(peak, quantile)) for quantile in FENCES]
        found += [(alpha, self.scales(inputs.maxima, peak, alpha)) for alpha in alphas]
        reach, peak = root_mean_square(inputs.sample), root_mean_square(weight)
        return found + [(alpha, self.scales(reach, peak, alpha)) for alpha in RMS_ALPHAS]


def apply(graph: Graph, fold: Fold, s: np.ndarray) -> None:
    """Folds s into the constants of `graph`; the function it computes stays the same."""
    take = ops.of(fold.source.op).scale
    assert take is not None, fold.source.op
    for name in (node.inputs[1] for node in (fold.linear, *fold.others)):
        graph.constants[name] = Tensor.of((graph.array(name) * columns(s)).astype(np.float32))
    inverse = np.ones((*s.shape[:-1], fold.width), np.float32)
    inverse[..., fold.index] = 1 / s if fold.power == 1 else s ** (-1 / fold.power)
    take(graph, fold.source, inverse)


def columns(s: np.ndarray) -> np.ndarray:
    """s [k], or [E, k] of experts, as a factor of their weights."""
    return s if s.ndim == 1 else s[:, None]


def search(
    inputs: Inputs,
    tied: Tied,
    candidates: Sequence[Smoothing],
    wide: float,
    error: Callable[[np.ndarray], float],
) -> Smoothing:
    """The candidate for whose s `error(s)`, the quantized layer's error, is least; each is relieved before.

    wide: the share of channels that flattening may widen.
    """
    relieved = [(alpha, tied.relieve(inputs.maxima, s, wide)) for alpha, s in candidates]
    errors = each(lambda candidate: error(candidate[1]), relieved)
    return relieved[int(np.argmin(errors))]


def root_mean_square(x: np.ndarray) -> np.ndarray:
    """Of each column. [m, k] → [k]."""
    squares: np.ndarray = np.einsum("mk,mk->k", x, x)
    return np.sqrt(squares / len(x))
