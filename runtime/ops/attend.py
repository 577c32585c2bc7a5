"""Attend: causal softmax(q · keysᵀ · scale) · values over all positions of a state, or a window.

Natively with the rotation of its queries and keys and with the Append whose state it reads (runtime/fuse.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flatlm.kernels_arm import layout, ops, reference
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.records import record, zeros
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Constant, Signature, Traits, disagreement, misfit, no_kernel
from flatlm.runtime.format.values import NEW_CACHE, Values, columns_of, heads, heads_of, streams
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.append import INT8, STATE, caches, parts
from flatlm.runtime.ops.function import Operation, Step
from flatlm.runtime.states import State

NAME, TRAITS = "Attend", Traits(ragged=True)

BY_HEAD = ("sinks", "slopes")  # options with an input of a number for each head, in this order
LEAST_CAP, MOST_CAP = 1e-3, 1e4  # above, float32 loses what is capped


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    presents = (f"present_{name}" for name in parts(attrs.get("state")))
    return Signature(
        {
            **dict.fromkeys(("q", *presents)),
            **{name: Constant("float32", ("h",)) for name in BY_HEAD if name in attrs},
        },
        ("y",),
        {
            "scale": Attr(float),
            "window": Attr(int, default=0),
            "softcap": Attr(float, default=0.0),
            **{name: Attr(int, default=0) for name in BY_HEAD},
            **STATE,
        },
        overwritten=("q",),
    )


def check(graph: Graph, node: Node) -> None:
    check_cap(node)
    for name in BY_HEAD:
        if node.attrs.get(name, 1) != 1:
            raise misfit(node, f"{name} is {node.attrs[name]}, not 1 or absent")


def check_cap(node: Node) -> None:
    """FormatError where its softcap, if it has one, is no such number."""
    softcap = float(node.attrs.get("softcap", 1.0))
    if not LEAST_CAP <= softcap <= MOST_CAP:
        raise misfit(node, f"softcap is {softcap}, not a number of {LEAST_CAP:g} … {MOST_CAP:g}")


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    number, size = heads_of(given[0])
    groups = columns_of(given[1])
    if given[1].kind.startswith(NEW_CACHE) and number % groups:
        raise disagreement(node, f"{number} heads and {groups} key/value heads do not divide")
    for name, shape in ((name, graph.constants[name].shape) for name in _by_head(node).values()):
        if given[0].kind == "heads" and shape != (number,):
            raise disagreement(node, f"{name!r} has shape {list(shape)}, there are {number} heads")
    state = node.attrs["state"]
    return (heads(number, size), *caches(NEW_CACHE, state, groups, size)), streams(number * size)


def window(node: Node) -> int:
    """Positions that a query sees, its own included; 0: all before it."""
    return int(node.attrs.get("window", 0))


def _by_head(node: Node) -> dict[str, str]:
    """The constants of its options by head."""
    present = [name for name in BY_HEAD if name in node.attrs]
    return dict(zip(present, node.inputs[len(node.inputs) - len(present) :], strict=True))


def scores(graph: Graph, node: Node) -> reference.Scores:
    """What is done to its scores."""
    by_head = {name: graph.array(constant) for name, constant in _by_head(node).items()}
    return reference.Scores(float(node.attrs.get("softcap", 0)), **by_head)


def numpy(graph: Graph, node: Node) -> Operation:
    scale, seen, options = float(node.attrs["scale"]), window(node), scores(graph, node)
    quantized = node.attrs["state"] == INT8
    attention: Callable[..., np.ndarray] = reference.attention_int8 if quantized else reference.attention

    def run(step: Step, q: np.ndarray, *present: np.ndarray) -> tuple[np.ndarray, ...]:
        return (attention(q, *present, scale, seen, options).reshape(len(q), -1),)

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """ROTATE and ATTEND of a float32 state, ROTATE8 and ATTEND8 of an int8 one."""
    node = group.node
    if not group.before:
        raise no_kernel(node, "attention that does not read a cache of its own")
    *turned, append = group.before
    q, (k, v) = node.inputs[0], append.inputs[:2]
    if turned:
        q, k = (rotation.inputs[0] for rotation in turned)
    number, size = lowering.values[q].size
    groups = lowering.values[k].size[0]
    if [lowering.apart(q, name) for name in (k, v)] != [number * size, (number + groups) * size]:
        raise no_kernel(node, "attention of queries, keys and values that are not of one product")
    tables = [lowering.tables[name] for name in turned[0].inputs[1:]] if turned else [0, 0]
    row, state = lowering.array(q), lowering.states[append.name]
    lower_one = _lower_int8 if node.attrs["state"] == INT8 else _lower_float
    lower_one(lowering, node, row, (number, groups, size), tables, state)


Sizes = tuple[int, int, int]  # heads, key/value heads, columns of a head


def _lower_float(
    lowering: Lowering, node: Node, qkv: np.ndarray, sizes: Sizes, tables: Sequence[int], state: State
) -> None:
    number, groups, size = sizes
    cos, sin = tables
    lowering.add(node, record(
        ops.ROTATE, R_QKV=qkv.ctypes.data, R_STRIDE=qkv.strides[0], R_HEADS=number, R_GROUPS=groups,
        R_SIZE=size, R_COS=cos, R_SIN=sin, **state.fields("R"),
    ))  # fmt: skip
    out = lowering.rows(node.outputs[0], number * size)
    lowering.add(node, record(
        ops.ATTEND, A_QKV=qkv.ctypes.data, A_STRIDE=qkv.strides[0], A_HEADS=number, A_GROUPS=groups,
        A_SIZE=size, A_FLOATS=_scale(lowering, node), A_OUT=out.ctypes.data, A_OUT_STRIDE=out.strides[0],
        **_options(lowering, node, "A"), **state.fields("A"),
    ))  # fmt: skip
    lowering.need(ops.attention_scratch(size, state.context))


def _lower_int8(
    lowering: Lowering, node: Node, qkv: np.ndarray, sizes: Sizes, tables: Sequence[int], state: State
) -> None:
    number, groups, size = sizes
    cos, sin = tables
    out = lowering.rows(node.outputs[0], number * size)
    fields = {
        "I_QKV": qkv.ctypes.data, "I_STRIDE": qkv.strides[0], "I_HEADS": number, "I_GROUPS": groups,
        "I_SIZE": size, "I_COS": cos, "I_SIN": sin, "I_FLOATS": _scale(lowering, node),
        "I_OUT": out.ctypes.data, "I_OUT_STRIDE": out.strides[0],
        **_options(lowering, node, "I"), **state.fields("I"), **_shared(lowering),
    }  # fmt: skip
    lowering.add(node, record(ops.ROTATE8, **fields))
    lowering.add(node, record(ops.ATTEND8, **fields))
    lowering.need(ops.attention8_scratch(size, state.context))


def _scale(lowering: Lowering, node: Node) -> int:
    return lowering.held(np.array([node.attrs["scale"]]), np.float32)


def _options(lowering: Lowering, node: Node, prefix: str) -> dict[str, int]:
    options = scores(lowering.graph, node)
    fields = {"WINDOW": window(node), "CAP": cap_of(lowering, options.softcap) if options.softcap else 0}
    for name, array in (("SINKS", options.sinks), ("SLOPES", options.slopes)):
        fields[name] = 0 if array is None else lowering.held(array, np.float32)
    return {f"{prefix}_{name}": value for name, value in fields.items()}


def cap_of(lowering: Lowering, cap: float) -> int:
    """The address of what kernels read of a softcap, float32 [cap, 2 / cap, 2 · cap]."""
    most, two = np.float32(cap), np.float32(2)
    return lowering.held(np.array([most, two / most, two * most]), np.float32)


def _shared(lowering: Lowering) -> dict[str, int]:
    """Buffers of int8 attention that all layers use in turn, as large as the largest needs: queries, parts of
    blocks, counters.
    """
    if not lowering.shared:
        number = groups = width = 0
        for node in (node for node in lowering.graph.nodes if node.op == NAME):
            queries, size = heads_of(lowering.values[node.inputs[0]])
            number, width = max(number, queries), max(width, padded(size, layout.ROWS))
            groups = max(groups, columns_of(lowering.values[node.inputs[1]]))
        blocks = lowering.context // ops.KV_BLOCK
        sizes = {
            "I_QUERIES": lowering.batch * number * (width // 4 + 4),
            "I_PARTS": ops.FEW_TOKENS * number * blocks * (width + 16),
            "I_COUNTERS": 16 * groups,
        }
        lowering.shared = {name: zeros(lowering.keep, (n,)).ctypes.data for name, n in sizes.items()}
    return lowering.shared
