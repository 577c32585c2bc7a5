"""The functions of docs/format.md, one file each: all that export knows of one, in named parts."""

from __future__ import annotations

from collections.abc import Iterable

from flatlm.runtime.errors import UnsupportedError
from flatlm.runtime.format.graph import Node

from . import (
    activation,
    add,
    append,
    attend,
    causal_conv,
    clamped_gate,
    embedding,
    expert_sum,
    experts,
    flat_embedding,
    flat_experts,
    flat_linear,
    gated,
    grouped_norm,
    head_norm,
    heads,
    linear,
    linear_attention,
    mul,
    norm,
    output_gate,
    parts,
    rotary_table,
    rotate,
    route,
    soft_cap,
)
from .function import Function

_FUNCTIONS = {
    function.name: function
    for function in (
        rotary_table.ROTARY_TABLE,
        embedding.EMBEDDING,
        flat_embedding.FLAT_EMBEDDING,
        norm.NORM,
        linear.LINEAR,
        flat_linear.FLAT_LINEAR,
        flat_linear.FLAT_LINEAR_TOKEN,
        heads.HEADS,
        head_norm.HEAD_NORM,
        rotate.ROTATE,
        append.APPEND,
        attend.ATTEND,
        gated.GATED,
        activation.ACTIVATION,
        output_gate.OUTPUT_GATE,
        soft_cap.FUNCTION,
        add.ADD,
        route.ROUTE,
        experts.EXPERTS,
        flat_experts.FLAT_EXPERTS,
        expert_sum.EXPERT_SUM,
        clamped_gate.CLAMPED_GATE,
        parts.PARTS,
        mul.MUL,
        causal_conv.CAUSAL_CONV,
        linear_attention.LINEAR_ATTENTION,
        grouped_norm.GROUPED_NORM,
    )
}


def of(op: str) -> Function:
    """The function that a node's `op` names. UnsupportedError where export knows none of that name."""
    if op not in _FUNCTIONS:
        raise UnsupportedError(f"cannot export {op}; known functions: {', '.join(sorted(_FUNCTIONS))}")
    return _FUNCTIONS[op]


def linears(nodes: Iterable[Node]) -> list[Node]:
    """Those that multiply by a matrix of weights."""
    return [node for node in nodes if of(node.op).matrix == "linear"]


def expert_layers(nodes: Iterable[Node]) -> list[Node]:
    """Those that multiply by the matrices of a token's experts."""
    return [node for node in nodes if of(node.op).matrix == "experts"]


def is_router(node: Node, nodes: Iterable[Node]) -> bool:
    """Whether experts are chosen by its outputs. It has 8 bits, and inputs of two digits: where a choice
    differs the model does, and it has few weights."""
    return any(other.op == "Route" and other.inputs[0] in node.outputs for other in nodes)


def tables(nodes: Iterable[Node]) -> list[Node]:
    """Those that read rows of a matrix of weights."""
    return [node for node in nodes if of(node.op).matrix == "table"]
