"""Smoothing: range moves from an activation channel into its weights, where the graph allows it for free.

Per channel, x / s and W · s with s = max|x|^α / max|W|^(1 − α) (SmoothQuant, arXiv 2211.10438). x / s costs
nothing where x is made by something linear in a vector of weights:

    norm ─► linear                     the norm's weight takes 1 / s
    qkv ─► attention ─► out            the rows of v do; the query heads of one key/value head share them
    gate, up ─► silu(gate) · up ─► down    the rows of up do

Which s is best is searched per layer, by the output error under the quantizer that will be used: the formula
at several α, the same with root mean squares in the place of maxima (the error of 4-bit weights with a step
of so many σ is least at α = 0.5 of that), and some that only tame weight columns beyond a quantile of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.export.calibrate import Inputs
from flatlm.export.parallel import each
from flatlm.runtime.format.graph import Graph, Node, Tensor

from .flatten import MAX_PIECES, box_threshold

FENCES = (0.5, 0.9, 0.98)
RMS_ALPHAS = (0.35, 0.5)
_LEAST = 1e-5  # as in SmoothQuant: a channel that never speaks is not scaled up without end


@dataclass(frozen=True, slots=True)
class Fold:
    """Input channel j of `linear` may be divided by s[j] by dividing element or row index[j] of `source`."""

    linear: Node
    source: Node  # a Norm or a Linear
    index: np.ndarray  # int64 [k]; channels with the same index share one s


def folds(nodes: Sequence[Node], graph: Graph) -> list[Fold]:
    """Every fold of the block; a linear whose input comes from elsewhere, or is read twice, has none."""
    producer = {name: node for node in nodes for name in node.outputs}
    readers: dict[str, int] = {}
    for node in nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    found = []
    for linear in (node for node in nodes if node.op == "Linear"):
        source, index = _origin(linear, producer, graph)
        if source is None:
            continue
        alone = (source.outputs[0], *linear.inputs[:2])  # a tied head's weight is not
        if all(readers[name] == 1 for name in alone):
            found.append(Fold(linear, source, index))
    return found


def _origin(linear: Node, producer: dict[str, Node], graph: Graph) -> tuple[Node | None, np.ndarray]:
    before = producer.get(linear.inputs[0])
    columns = np.arange(graph.constants[linear.inputs[1]].shape[1])
    if before is None:
        return None, columns
    if before.op == "Norm":
        return before, columns
    source = producer.get(before.inputs[0])
    if source is None or source.op != "Linear":
        return None, columns
    if before.op == "SwiGLU":
        return source, len(columns) + columns
    if before.op == "RotaryAttention":
        h, g, d = (int(before.attrs[name]) for name in ("num_heads", "kv_num_heads", "head_size"))
        head, element = np.divmod(columns, d)
        return source, (h + g + head // (h // g)) * d + element
    return None, columns


def gated(fold: Fold, nodes: Sequence[Node]) -> bool:
    """Whether the fold goes through silu(gate) · up."""
    return any(node.op == "SwiGLU" and fold.linear.inputs[0] in node.outputs for node in nodes)


def parts(linear: Node, nodes: Sequence[Node], graph: Graph) -> list[slice]:
    """The row ranges of a fused layer that were tensors of their own: q, k, v or gate, up."""
    rows = graph.constants[linear.inputs[1]].shape[0]
    reader = next((node for node in nodes if linear.outputs[0] in node.inputs), None)
    if reader is not None and reader.op == "RotaryAttention":
        h, g, d = (int(reader.attrs[name]) for name in ("num_heads", "kv_num_heads", "head_size"))
        return [slice(0, h * d), slice(h * d, (h + g) * d), slice((h + g) * d, rows)]
    if reader is not None and reader.op == "SwiGLU":
        return [slice(0, rows // 2), slice(rows // 2, rows)]
    return [slice(0, rows)]


def scales(reach: np.ndarray, peak: np.ndarray, index: np.ndarray, alpha: float) -> np.ndarray:
    """s float32 [k] with geometric mean 1, from a size of the inputs and one of the weight columns, both [k].

    Channels with the same `index` share one s, that of the largest sizes.
    """
    exponent = alpha * np.log(_tied(reach, index).clip(_LEAST))
    exponent -= (1 - alpha) * np.log(_tied(peak, index).clip(_LEAST))
    return np.exp(exponent - exponent.mean()).astype(np.float32)


def fence(weight: np.ndarray, index: np.ndarray, quantile: float) -> np.ndarray:
    """s float32 [k] that brings weight columns down to this quantile of their maxima, and is 1 elsewhere."""
    peak = _tied(np.abs(weight).max(0), index).clip(_LEAST)
    return np.minimum(1, np.quantile(peak, quantile) / peak).astype(np.float32)


def relieve(maxima: np.ndarray, s: np.ndarray, index: np.ndarray, wide: float) -> np.ndarray:
    """s, larger where x / s would flatten into more than the 127 columns there can be."""
    reach = _tied(maxima / s, index)
    return (s * np.maximum(1, reach / (MAX_PIECES * box_threshold(maxima / s, wide)))).astype(np.float32)


def _tied(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Each channel's value becomes the largest among the channels of the same index."""
    top = np.zeros(index.max() + 1)
    np.maximum.at(top, index, values)
    return top[index]


def apply(graph: Graph, fold: Fold, s: np.ndarray) -> None:
    """Folds s into the constants of `graph`; the function it computes stays the same."""
    name = fold.linear.inputs[1]
    _set(graph, name, graph.array(name) * s)
    inverse = np.ones(graph.constants[fold.source.inputs[1]].shape[0], np.float32)
    inverse[fold.index] = 1 / s
    if fold.source.op == "Norm":
        _set(graph, fold.source.inputs[1], graph.array(fold.source.inputs[1]) * inverse)
    else:
        _set(graph, fold.source.inputs[1], graph.array(fold.source.inputs[1]) * inverse[:, None])
        _set(graph, fold.source.inputs[2], graph.array(fold.source.inputs[2]) * inverse)


def _set(graph: Graph, name: str, value: np.ndarray) -> None:
    graph.constants[name] = Tensor.of(value.astype(np.float32))


def search(
    inputs: Inputs,
    weight: np.ndarray,
    index: np.ndarray,
    alphas: Sequence[float],
    wide: float,
    error: Callable[[np.ndarray], float],
) -> tuple[float | None, np.ndarray]:
    """The α (None: not by the formula) and s [k] for which `error(s)`, the quantized layer's error, is least.

    weight [n, k]; wide: the share of channels that flattening may widen.
    """
    candidates: list[tuple[float | None, np.ndarray]] = [(None, np.ones(len(index), np.float32))]
    candidates += [(None, fence(weight, index, quantile)) for quantile in FENCES]
    sizes = [
        (inputs.maxima, np.abs(weight).max(0), alphas),
        (root_mean_square(inputs.sample), root_mean_square(weight), RMS_ALPHAS),
    ]
    for reach, peak, strengths in sizes:
        candidates += [(alpha, scales(reach, peak, index, alpha)) for alpha in strengths]
    relieved = [(alpha, relieve(inputs.maxima, s, index, wide)) for alpha, s in candidates]
    errors = each(lambda candidate: error(candidate[1]), relieved)
    return relieved[int(np.argmin(errors))]


def root_mean_square(x: np.ndarray) -> np.ndarray:
    """Of each column. [m, k] → [k]."""
    return np.sqrt(np.einsum("mk,mk->k", x, x) / len(x))
