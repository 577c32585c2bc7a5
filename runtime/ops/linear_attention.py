"""LinearAttention: attention through a matrix for each head, which fades and is added to, token for token.

The rules "gated" and "gated_delta" of ONNX's LinearAttention, with gates that are made of what products give.
Its state is the matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from flatlm.kernels_arm import ops, recurrent
from flatlm.kernels_arm.records import record
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Constant, Signature, Traits, misfit
from flatlm.runtime.format.values import NEW_STATE, STATE, Value, Values, streams
from flatlm.runtime.format.values import state as state_value
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step
from flatlm.runtime.states import Description, matrices

NAME, TRAITS = "LinearAttention", Traits(ragged=True)

GATED, DELTA = "gated", "gated_delta"
MOST_SIZE = 4096  # columns of a key: a block of the matrix stands in a thread's memory


class Sizes(NamedTuple):
    """Of a node."""

    heads: int
    key_heads: int
    key_size: int
    value_size: int


def sizes_of(node: Node) -> Sizes:
    return Sizes(*(int(node.attrs[name]) for name in ("num_heads", "key_heads", "key_size", "value_size")))


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    delta = attrs.get("update_rule") == DELTA
    per_head = Constant("float32", ("num_heads",))
    return Signature(
        {
            **dict.fromkeys(("q", "k", "v", "dt")),
            **({"beta": None} if delta else {}),
            "dt_bias": per_head,
            "decay": per_head,
            **({} if delta else {"skip": per_head}),
            "past_state": None,
        },
        ("y", "present_state"),
        {
            "update_rule": Attr(str, (GATED, DELTA)),
            **dict.fromkeys(("num_heads", "key_heads", "key_size", "value_size"), Attr(int)),
            "least_step": Attr(float, default=0.0),
        },
    )


def check(graph: Graph, node: Node) -> None:
    sizes, least = sizes_of(node), float(node.attrs.get("least_step", 0.0))
    if sizes.heads % sizes.key_heads or sizes.key_size > MOST_SIZE:
        raise misfit(
            node,
            f"{sizes.heads} heads and {sizes.key_heads} key heads of {sizes.key_size} columns: heads must be "
            f"a multiple of key heads, and columns at most {MOST_SIZE}",
        )
    if not 0 <= least < 1e3:
        raise misfit(node, f"least_step is {least}, not a number from 0 to 1000")
    decay = graph.constants[_constants(node)["decay"]].data
    if not (decay <= 0).all():
        raise misfit(node, f"decay has {decay.max()}: above 0 the matrices would grow without end")


def _constants(node: Node) -> dict[str, str]:
    """Names by role."""
    signed = signature(node.attrs)
    roles = zip(signed.inputs.items(), node.inputs, strict=True)
    return {role: name for (role, expected), name in roles if expected is not None}


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    h, j, key, value = sizes_of(node)
    past, present = (state_value(prefix, h, key, value) for prefix in (STATE, NEW_STATE))
    beta = streams(h) if node.attrs["update_rule"] == DELTA else ()
    return (*streams(j * key, j * key, h * value, h), *beta, past), (*streams(h * value), present)


def state(graph: Graph, node: Node, values: Mapping[str, Value]) -> Description:
    return matrices.Matrices(*sizes_of(node))


def numpy(graph: Graph, node: Node) -> Operation:
    h, j, key, value = sizes_of(node)
    constants = {role: graph.array(name) for role, name in _constants(node).items()}
    least, delta = float(node.attrs.get("least_step", 0.0)), node.attrs["update_rule"] == DELTA

    def run(
        step: Step, q: np.ndarray, k: np.ndarray, v: np.ndarray, dt: np.ndarray, *others: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        m, v = len(v), v.reshape(-1, h, value)
        size, fade = recurrent.gates(dt, constants["dt_bias"], constants["decay"], least)
        share = recurrent.sigmoid(others[0]) if delta else size
        before = step.recall(node.name, (h, key, value))
        q, k = (x.reshape(m, j, key) for x in (q, k))
        y, after = recurrent.linear_attention(q, k, v, fade, share, before, delta=delta)
        step.keep(node.name, after)
        if not delta:
            y = y + constants["skip"][:, None] * v
        return y.reshape(m, -1), after

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """LINEAR_ATTENTION."""
    node, sizes = group.node, sizes_of(group.node)
    constants = {role: lowering.graph.array(name) for role, name in _constants(node).items()}
    skip = constants.get("skip", np.zeros(sizes.heads, np.float32))
    least = [node.attrs.get("least_step", 0.0)]
    floats = np.concatenate([constants["dt_bias"], constants["decay"], skip, least])
    fields = dict[str, int]()
    names = [name for name in node.inputs if name not in lowering.graph.constants][:-1]
    for field, name in zip(("Q", "K", "V", "DT", "BETA"), names, strict=False):
        rows = lowering.array(name)
        fields |= {f"L_{field}": rows.ctypes.data, f"L_{field}_STRIDE": rows.strides[0]}
    out = lowering.rows(node.outputs[0], sizes.heads * sizes.value_size)
    lowering.add(node, record(
        ops.LINEAR_ATTENTION, L_OUT=out.ctypes.data, L_OUT_STRIDE=out.strides[0], L_HEADS=sizes.heads,
        L_KEY_HEADS=sizes.key_heads, L_KEY_SIZE=sizes.key_size, L_VALUE_SIZE=sizes.value_size,
        L_FLOATS=lowering.held(floats, np.float32), **fields, **lowering.states[node.name].fields("L"),
    ))  # fmt: skip
    lowering.need(ops.linear_attention_scratch(sizes.key_size))
