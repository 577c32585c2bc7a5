"""The functions of docs/format.md as a table, and the checks of a graph against it.

What passes here is safe to hand to a kernel: shapes fit one another, indices stay inside their arrays.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from flatlm.kernels_arm import layout
from flatlm.runtime.errors import FormatError
from flatlm.runtime.format.graph import Graph, Node, Tensor

DOMAIN, VERSION = "flatlm", 2
STANDARD = ("Add",)  # operators of the standard domain that a graph may call

# By the activations' step: one for the tensor, one for each token
LINEAR, TOKEN_LINEAR = "FlatLinear", "FlatLinearToken"
LINEARS = (LINEAR, TOKEN_LINEAR)

FLOATS = ("Embedding", "Linear")  # the originals of a float graph

# Their last input in the file, not in a Graph: it tells onnxruntime which product to use
SIGNED = "signed_activations"

ATTENTION, INT8_ATTENTION = "RotaryAttention", "RotaryAttentionInt8"  # by the cache's type
ATTENTIONS = (ATTENTION, INT8_ATTENTION)

MOST_PIECES = 127  # of a channel: its X of 127 · 127 steps is two int8 digits
MOST_HEAD_SIZE = 1024  # 127 · 127 times that stays below 2^24, so a float32 product of integers is exact

MOST_PLACES = 1 << 16  # digits of a token's row that excess may point to, low and high ones: uint16

PACKED = "packed"  # uint4 or int8 in the packed order, fitting rows × columns


@dataclass(frozen=True, slots=True)
class Constant:
    """An input that must be a constant; `shape` names attributes or dimensions that recur."""

    dtype: str
    shape: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs in order (None: computed by an earlier node), outputs in order, attributes by type."""

    inputs: Mapping[str, Constant | None]
    outputs: tuple[str, ...]
    attrs: Mapping[str, type] = field(default_factory=dict)


_MATRIX = {"rows": int, "columns": int, "offset": int}
_ROWS = {
    "weight": Constant(PACKED),
    "scale": Constant("float32", ("rows",)),
    "bias": Constant("float32", ("rows",)),
}
_LIMIT = {"limit": Constant("float32", ("columns",))}
_EXCESS = {"excess_delta": Constant("uint8", ("E",)), "excess_value": Constant("int8", ("E",))}

FUNCTIONS: dict[str, Signature] = {
    "RotaryTable": Signature(
        {"position_ids": None, "inverse_frequency": Constant("float32", ("d/2",))}, ("cos", "sin")
    ),
    "FlatEmbedding": Signature(
        {"ids": None, "weight": Constant(PACKED), "scale": Constant("float32", ("rows",)), **_EXCESS},
        ("y",),
        _MATRIX,
    ),
    "Norm": Signature({"x": None, "weight": Constant("float32", ("k",))}, ("y",), {"epsilon": float}),
    LINEAR: Signature(
        {"x": None, **_ROWS, "inverse_scale": Constant("float32"), **_LIMIT, **_EXCESS},
        ("y",),
        {**_MATRIX, "levels": int},
    ),
    TOKEN_LINEAR: Signature(
        {"x": None, **_ROWS, **_LIMIT, **_EXCESS},
        ("y",),
        {**_MATRIX, "levels": int},
    ),
    ATTENTION: Signature(
        dict.fromkeys(("qkv", "cos", "sin", "past_key", "past_value")),
        ("y", "present_key", "present_value"),
        {"num_heads": int, "kv_num_heads": int, "head_size": int, "scale": float},
    ),
    INT8_ATTENTION: Signature(
        dict.fromkeys(("qkv", "cos", "sin", "past_key", "past_key_scale", "past_value", "past_value_scale")),
        ("y", "present_key", "present_key_scale", "present_value", "present_value_scale"),
        {"num_heads": int, "kv_num_heads": int, "head_size": int, "scale": float},
    ),
    "SwiGLU": Signature({"gate_up": None}, ("y",)),
    "Embedding": Signature({"ids": None, "weight": Constant("float32", ("V", "k"))}, ("y",)),
    "Linear": Signature(
        {"x": None, "weight": Constant("float32", ("n", "k")), "bias": Constant("float32", ("n",))}, ("y",)
    ),
    "Add": Signature({"a": None, "b": None}, ("y",)),
}


def named(node: Node) -> dict[str, str]:
    """The node's inputs by their role in its signature."""
    return dict(zip(FUNCTIONS[node.op].inputs, node.inputs, strict=True))


def cache_types(node: Node) -> list[tuple[str, str, int]]:
    """Name, data type and last dimension of an attention node's cache inputs; its outputs follow suit."""
    size = int(node.attrs["head_size"])
    kinds = [("float32", size)] if node.op == ATTENTION else [("int8", size), ("float32", 1)]
    return [(name, *kinds[i % len(kinds)]) for i, name in enumerate(node.inputs[3:])]


def check_graph(graph: Graph) -> None:
    """FormatError, naming the node, unless every node fits its signature and reads what exists."""
    known = set(graph.inputs)
    for node in graph.nodes:
        _check_node(graph, node)
        for name in node.inputs:
            if name not in known and name not in graph.constants:
                raise _misfit(node, f"input {name!r} comes from no earlier node and no constant")
        for name in node.outputs:
            if name in known or name in graph.constants:
                raise _misfit(node, f"output {name!r} exists already")
            known.add(name)
    missing = [name for name in graph.outputs if name not in known]
    if missing:
        raise FormatError(f"no node computes the output {missing[0]!r}")


def require_integers(graph: Graph) -> None:
    """FormatError for a graph with float originals: flatlm's own kernels know none of them."""
    for node in graph.nodes:
        if node.op in FLOATS:
            raise _misfit(node, "a float original, which only onnxruntime runs: --backend ort")


def label(node: Node) -> str:
    return f"node {node.name or ', '.join(node.outputs)!r} ({node.op})"


def _misfit(node: Node, problem: str) -> FormatError:
    return FormatError(f"{label(node)}: {problem}")


def _check_node(graph: Graph, node: Node) -> None:
    signature = FUNCTIONS.get(node.op)
    if signature is None:
        raise _misfit(node, f"unknown function{_similar(node.op)}; a newer flatlm may know it")
    if len(node.inputs) != len(signature.inputs) or len(node.outputs) != len(signature.outputs):
        counts = f"{len(node.inputs)} inputs and {len(node.outputs)} outputs"
        raise _misfit(node, f"{counts}, not {len(signature.inputs)} and {len(signature.outputs)}")
    sizes = _check_attributes(node, signature)
    for (role, expected), name in zip(signature.inputs.items(), node.inputs, strict=True):
        if expected is None:
            if name in graph.constants:
                raise _misfit(node, f"{role} is the constant {name!r}, not a computed value")
        elif name not in graph.constants:
            raise _misfit(node, f"{role} {name!r} is not a constant")
        elif expected.dtype == PACKED:
            _check_packed(node, name, graph.constants[name])
        else:
            _check_constant(node, name, graph.constants[name], expected, sizes)
    if node.op in (*LINEARS, "FlatEmbedding"):
        _check_excess(graph, node)
    if node.op in LINEARS:
        _check_flattening(graph, node)
    if node.op in ATTENTIONS:
        heads, kv_heads, size = (sizes[name] for name in ("num_heads", "kv_num_heads", "head_size"))
        if heads % kv_heads or size % 2:
            raise _misfit(node, f"{heads} heads, {kv_heads} key/value heads of size {size} do not divide")
        if node.op == INT8_ATTENTION and size > MOST_HEAD_SIZE:
            raise _misfit(node, f"head size {size}, an int8 cache has room for {MOST_HEAD_SIZE}")


def _check_attributes(node: Node, signature: Signature) -> dict[str, int]:
    """The integer attributes, which are sizes but for `offset`."""
    sizes = {}
    for name in {*signature.attrs, *node.attrs}:
        kind, value = signature.attrs.get(name), node.attrs.get(name)
        if kind is None:
            raise _misfit(node, f"unknown attribute {name!r}")
        if type(value) is not kind:
            raise _misfit(node, f"attribute {name!r} must be {kind.__name__}, is {value!r}")
        if isinstance(value, int):
            if name != "offset" and not 1 <= value < 1 << 31:
                raise _misfit(node, f"attribute {name!r} is {value}, not a size")
            sizes[name] = value
    return sizes


def _check_constant(node: Node, name: str, tensor: Tensor, expected: Constant, sizes: dict[str, int]) -> None:
    if tensor.dtype != expected.dtype:
        raise _misfit(node, f"tensor {name!r} is {tensor.dtype}, not {expected.dtype}")
    if len(tensor.shape) == len(expected.shape):
        wanted = tuple(map(sizes.setdefault, expected.shape, tensor.shape))
        if wanted == tensor.shape:
            return
        raise _misfit(node, f"tensor {name!r} has shape {list(tensor.shape)}, not {list(wanted)}")
    raise _misfit(node, f"tensor {name!r} has shape {list(tensor.shape)}, not [{', '.join(expected.shape)}]")


def _check_packed(node: Node, name: str, tensor: Tensor) -> None:
    bits = {"uint4": 4, "int8": 8}.get(tensor.dtype)
    if bits is None:
        raise _misfit(node, f"tensor {name!r} is {tensor.dtype}, not uint4 or int8")
    wanted = layout.packed_shape(int(node.attrs["rows"]), int(node.attrs["columns"]), bits)
    if tensor.shape != wanted:
        raise _misfit(node, f"tensor {name!r} has shape {list(tensor.shape)}, not {list(wanted)}")
    if node.attrs["offset"] != layout.offset_of(bits):
        raise _misfit(node, f"offset {node.attrs['offset']} does not go with {tensor.dtype}")


def _check_excess(graph: Graph, node: Node) -> None:
    weight, delta, value = (graph.constants[name] for name in (node.inputs[1], *node.inputs[-2:]))
    if not delta.shape[0]:
        return
    elements = int(np.prod(weight.shape, dtype=np.int64))
    last = int(np.sum(delta.data, dtype=np.int64))
    if weight.dtype != "uint4":
        raise _misfit(node, "sparse excess goes with uint4 weights only")
    if last >= elements:
        raise _misfit(node, f"excess at position {last} of {elements} weights in {node.inputs[-2]!r}")
    if not delta.data[1:].all():
        raise _misfit(node, f"two entries of excess at one position in {node.inputs[-2]!r}")
    if 2 * layout.padded(int(node.attrs["columns"]), layout.COLUMNS) > MOST_PLACES:
        raise _misfit(
            node, f"{node.attrs['columns']} columns with excess, the kernels know {MOST_PLACES // 2}"
        )
    if max(int(value.data.max()), -int(value.data.min())) > layout.MAX_TOTAL:
        raise _misfit(node, f"a weight total beyond ±{layout.MAX_TOTAL} in {node.inputs[-1]!r}")


def _check_flattening(graph: Graph, node: Node) -> None:
    name, levels = named(node)["limit"], int(node.attrs["levels"])
    if levels not in (7, 127):
        raise _misfit(node, f"levels are 7 or 127, not {levels}")
    pieces = graph.array(name) / np.float32(levels)
    if not np.all((pieces >= 1) & (pieces <= MOST_PIECES) & (pieces == np.rint(pieces))):
        what = f"{levels}, {2 * levels}, … {MOST_PIECES * levels}"
        raise _misfit(node, f"{name!r} has limits that are not of {what}")


def _similar(name: str) -> str:
    near = difflib.get_close_matches(name, FUNCTIONS, 1)
    return f", did you mean {near[0]}?" if near else ""
