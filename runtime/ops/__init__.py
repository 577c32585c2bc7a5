"""The functions of docs/format.md: one module each, with the parts that `function.Function` names.

Who needs to know something of a node asks its module, so that a new function is a file here and a line in
`_MODULES` (and a kernel, where none does its work).
"""

from __future__ import annotations

from collections.abc import Mapping

from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.format.signature import Signature
from flatlm.runtime.format.values import Value
from flatlm.runtime.ops import (
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
    flat_linear_token,
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
from flatlm.runtime.ops.function import Function, Product, Stateful
from flatlm.runtime.states import Description

_MODULES: tuple[Function, ...] = (
    rotary_table,
    flat_embedding,
    norm,
    flat_linear,
    flat_linear_token,
    heads,
    head_norm,
    rotate,
    append,
    attend,
    gated,
    activation,
    output_gate,
    soft_cap,
    embedding,
    linear,
    add,
    route,
    experts,
    flat_experts,
    expert_sum,
    clamped_gate,
    parts,
    mul,
    causal_conv,
    linear_attention,
    grouped_norm,
)
_PRODUCTS: tuple[Product, ...] = (flat_linear, flat_linear_token)
_STATEFUL: tuple[Stateful, ...] = (append, causal_conv, linear_attention)

OPS = {module.NAME: module for module in _MODULES}
PRODUCTS = {module.NAME: module for module in _PRODUCTS}
QUANTIZING = {*PRODUCTS, flat_experts.NAME}  # whose input becomes integers
STATEFUL = {module.NAME: module for module in _STATEFUL}


def of(node: Node) -> Function:
    """The module of the node's function, which `format.functions.check_graph` has found to exist."""
    return OPS[node.op]


def signature(node: Node) -> Signature:
    return of(node).signature(node.attrs)


def named(node: Node) -> dict[str, str]:
    """The node's inputs by their role in its signature."""
    return dict(zip(signature(node).inputs, node.inputs, strict=True))


def computed(node: Node) -> list[str]:
    """Those of the node's inputs that are no constants."""
    roles = named(node)
    return [roles[role] for role in signature(node).computed]


def is_product(node: Node) -> bool:
    """Whether it multiplies by packed weights."""
    return node.op in PRODUCTS


def quantizes(node: Node) -> bool:
    """Whether its first input becomes integers, in records of its own."""
    return node.op in QUANTIZING


def has_state(node: Node) -> bool:
    return node.op in STATEFUL


def states_of(graph: Graph, values: Mapping[str, Value]) -> dict[str, Description]:
    """The states of a graph's nodes, by their names; `values` as `widths.values_of` gives them."""
    stateful = (node for node in graph.nodes if has_state(node))
    return {node.name: STATEFUL[node.op].state(graph, node, values) for node in stateful}
