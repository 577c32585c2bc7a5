"""The checks of a graph against its functions, the modules of runtime/ops (docs/format.md describes them).

What passes here is safe to hand to a kernel: shapes fit one another, indices stay inside their arrays.
"""

from __future__ import annotations

import difflib

from flatlm.kernels_arm import layout
from flatlm.kernels_arm.expert_layout import packed_shape
from flatlm.runtime import ops
from flatlm.runtime.errors import FormatError
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.signature import PACKED, Constant, Signature, misfit
from flatlm.runtime.ops import add, flat_linear, flat_linear_token, mul, originals

DOMAIN, VERSION = "flatlm", 3
STANDARD = (add.NAME, mul.NAME)  # operators of the standard domain that a graph may call

# By the activations' step: one for the tensor, one for each token
LINEAR, TOKEN_LINEAR = flat_linear.NAME, flat_linear_token.NAME
LINEARS = (LINEAR, TOKEN_LINEAR)

# Their last input in the file, not in a Graph: it tells onnxruntime which product to use
SIGNED = "signed_activations"


def check_graph(graph: Graph) -> None:
    """FormatError, naming the node, unless every node fits its signature and reads what exists."""
    known = set(graph.inputs)
    for node in graph.nodes:
        _check_node(graph, node)
        for name in node.inputs:
            if name not in known and name not in graph.constants:
                raise misfit(node, f"input {name!r} comes from no earlier node and no constant")
        for name in node.outputs:
            if name in known or name in graph.constants:
                raise misfit(node, f"output {name!r} exists already")
            known.add(name)
    missing = [name for name in graph.outputs if name not in known]
    if missing:
        raise FormatError(f"no node computes the output {missing[0]!r}")


def require_integers(graph: Graph) -> None:
    """FormatError for a graph with float originals: flatlm's own kernels know none of them."""
    for node in graph.nodes:
        if ops.of(node).TRAITS.original:
            raise originals.refusal(node)


def _check_node(graph: Graph, node: Node) -> None:
    if node.op not in ops.OPS:
        raise misfit(node, f"unknown function{_similar(node.op)}; a newer flatlm may know it")
    signature = ops.signature(node)
    sizes = _check_attributes(node, signature)
    if len(node.inputs) != len(signature.inputs) or len(node.outputs) != len(signature.outputs):
        counts = f"{len(node.inputs)} inputs and {len(node.outputs)} outputs"
        raise misfit(node, f"{counts}, not {len(signature.inputs)} and {len(signature.outputs)}")
    for (role, expected), name in zip(signature.inputs.items(), node.inputs, strict=True):
        if expected is None:
            if name in graph.constants:
                raise misfit(node, f"{role} is the constant {name!r}, not a computed value")
        elif name not in graph.constants:
            raise misfit(node, f"{role} {name!r} is not a constant")
        elif expected.dtype == PACKED:
            _check_packed(node, name, graph.constants[name])
        else:
            _check_constant(node, name, graph.constants[name], expected, sizes)
    ops.of(node).check(graph, node)


def _check_attributes(node: Node, signature: Signature) -> dict[str, int]:
    """The integer attributes, which are sizes but for `offset`."""
    sizes = {}
    for name in {*signature.attrs, *node.attrs}:
        expected, value = signature.attrs.get(name), node.attrs.get(name)
        if expected is None:
            raise misfit(node, f"unknown attribute {name!r}")
        if value is None and expected.default is not None:
            continue
        if type(value) is not expected.kind:
            raise misfit(node, f"attribute {name!r} must be {expected.kind.__name__}, is {value!r}")
        if expected.choices and value not in expected.choices:
            raise misfit(node, f"attribute {name!r} is {value!r}, this flatlm knows {expected.choices}")
        if isinstance(value, int):
            if name != "offset" and not 1 <= value < 1 << 31:
                raise misfit(node, f"attribute {name!r} is {value}, not a size")
            sizes[name] = value
    return sizes


def _check_constant(node: Node, name: str, tensor: Tensor, expected: Constant, sizes: dict[str, int]) -> None:
    if tensor.dtype != expected.dtype:
        raise misfit(node, f"tensor {name!r} is {tensor.dtype}, not {expected.dtype}")
    if len(tensor.shape) == len(expected.shape):
        wanted = tuple(map(sizes.setdefault, expected.shape, tensor.shape))
        if wanted == tensor.shape:
            return
        raise misfit(node, f"tensor {name!r} has shape {list(tensor.shape)}, not {list(wanted)}")
    raise misfit(node, f"tensor {name!r} has shape {list(tensor.shape)}, not [{', '.join(expected.shape)}]")


def _check_packed(node: Node, name: str, tensor: Tensor) -> None:
    bits = {"uint4": 4, "int8": 8}.get(tensor.dtype)
    if bits is None:
        raise misfit(node, f"tensor {name!r} is {tensor.dtype}, not uint4 or int8")
    experts = int(node.attrs.get("experts", 1))
    wanted = packed_shape(experts, int(node.attrs["rows"]), int(node.attrs["columns"]), bits)
    if tensor.shape != wanted:
        raise misfit(node, f"tensor {name!r} has shape {list(tensor.shape)}, not {list(wanted)}")
    if node.attrs["offset"] != layout.offset_of(bits):
        raise misfit(node, f"offset {node.attrs['offset']} does not go with {tensor.dtype}")


def _similar(name: str) -> str:
    near = difflib.get_close_matches(name, ops.OPS, 1)
    return f", did you mean {near[0]}?" if near else ""
