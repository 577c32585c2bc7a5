"""Rewrites that change no bit: products, embeddings, norms, the cache, the mask, and splits.

`REWRITES` says which functions of docs/format.md they are of. Another function stays as the file has it, if
it neither has a state nor reads a cache.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from flatlm.runtime import ops

from .calls import Call, Rewrite
from .functions import Refused, integer, parsed, read
from .products import PRODUCTS, weights_of

# Values of the plan beside those of the file
WRITE = "plan.write"  # int64 [1]: the first new position
KEYS = "plan.key_positions"  # int64 [S]: 0 … S - 1, S places of the cache
QUERIES = "plan.query_column"  # int64 [T, 1]: the positions of the new tokens


def product(call: Call) -> None:
    """FlatLinear and FlatLinearToken: quantization and scales are the file's, the product between is ours."""
    found = PRODUCTS[call.product](weights_of(call.graph, call.node), limit(call))
    call.replace(["acc_float"], found.nodes)
    call.kind = found.kind
    for name, array in found.arrays.items():
        call.give(name, array)


def limit(call: Call) -> np.ndarray:
    """float32 [k] of a product: the largest integer of each channel."""
    return call.graph.array(ops.named(call.node)["limit"]).astype(np.float32)


def embedding(call: Call) -> None:
    """FlatEmbedding: whole rows, which no order of the kernels scatters."""
    call.give("rows_8", call.graph.totals(call.node))
    call.rewrite("""
        picked = Gather <axis = 0> (rows_8, ids)
        integers = Cast <to = 1> (picked)
        row_scale = Gather (scale, ids)
        last = Constant <value_ints = [-1]> ()
        row_scale_1 = Unsqueeze (row_scale, last)
        y = Mul (integers, row_scale_1)
    """)


def norm(call: Call) -> None:
    """The row's size is asked of the weight, a constant: of x, its Cast is on the CPU in every step."""
    for node in call.nodes:
        if node.op_type == "Shape" and list(node.input) == ["x"] and integer(node, "start") == -1:
            node.input[0] = "weight"


def append(call: Call) -> None:
    """New rows are written into the cache where they belong, in the place of a longer copy of it."""
    for number, node in enumerate(call.nodes):
        if not set(node.output) & set(call.outputs):
            continue
        if node.op_type != "Concat" or integer(node, "axis") != 2 or len(node.input) != 2:
            raise Refused(
                f"the function {call.node.op!r} makes {node.output[0]!r} of no Concat of past and new"
            )
        past, new = node.input
        text = f"{node.output[0]} = TensorScatter <axis = 2> ({past}, {new}, write)"
        call.nodes[number : number + 1] = parsed(text)
    call.take("write", WRITE)


def attend(call: Call) -> None:
    """A query sees the keys up to its own position: those after it, stale or not written yet, count as −∞."""
    call.replace(["key_position", "query_column"], "")
    call.take("key_position", KEYS)
    call.take("query_column", QUERIES)
    left = {name for node in call.nodes for name in node.output} & {"past", "query_position"}
    if left:
        raise Refused(f"the function {call.node.op!r} takes {min(left)!r} of the cache's length")


def splits(call: Call) -> None:
    """A Split of unequal parts becomes slices: it would copy their sizes to the device in every step."""
    makers = {name: node for node in call.nodes for name in node.output}
    for node in [node for node in call.nodes if node.op_type == "Split" and len(node.input) > 1]:
        sizes = makers.get(node.input[1])
        if sizes is None or sizes.op_type != "Concat" or len(sizes.input) != len(node.output):
            raise Refused(
                f"the function {call.node.op!r} splits {node.input[0]!r} into parts it does not list"
            )
        at = call.nodes.index(node)
        call.nodes[at : at + 1] = _slices(node, sizes)


def _slices(node: onnx.NodeProto, sizes: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Of a Split whose `sizes` are a Concat of one number each."""
    x, start = node.input[0], f"{node.input[0]}_start_0"
    lines = [f"{x}_axis = Constant <value_ints = [{integer(node, 'axis')}]> ()"]
    lines.append(f"{start} = Constant <value_ints = [0]> ()")
    for i, (part, size) in enumerate(zip(node.output, sizes.input, strict=True), 1):
        end = f"{x}_start_{i}"
        lines += [f"{end} = Add ({start}, {size})", f"{part} = Slice ({x}, {start}, {end}, {x}_axis)"]
        start = end
    return parsed("\n".join(lines))


REWRITES: Mapping[str, Rewrite] = {
    "FlatLinear": product,
    "FlatLinearToken": product,
    "FlatEmbedding": embedding,
    "Norm": norm,
    "HeadNorm": norm,
    "Append": append,
    "Attend": attend,
}


def rewrite(call: Call, table: Mapping[str, Rewrite], caches: set[str]) -> None:
    """One call by its rewrite in `table`, if it has one. `caches`: the outputs of all Append.

    Refused, with the function's name, where it cannot be part of a plan.
    """
    known = table.get(call.node.op)
    if known is None and ops.has_state(call.node):
        raise Refused(f"the function {call.node.op!r} of {call.node.name!r} has a state that is no K/V cache")
    if known is None and ops.quantizes(call.node):
        raise Refused(f"the function {call.node.op!r} of {call.node.name!r} has packed weights of its own")
    if known is None and caches & set(call.node.inputs):
        raise Refused(f"the function {call.node.op!r} of {call.node.name!r} reads a cache")
    if known is not None:
        known(call)
    splits(call)
    missing = set().union(*map(read, call.nodes)) - set(call.inputs)
    missing -= {name for node in call.nodes for name in node.output}
    assert not missing, (call.node.op, missing)
    call.drop_unread()
