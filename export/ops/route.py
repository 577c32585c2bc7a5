"""Route: which experts each token goes to, and their shares.

Legend: B windows, T tokens of a window, E experts, K of them a token, S draws.
"""

from __future__ import annotations

import numpy as np

from flatlm.export.onnx_text.exp import exp, literal
from flatlm.kernels_arm import expert_reference, reference
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.ops.route import options

from .function import Env, Function, Operation

# `{x}` → `{y}`, as `expert_reference.softmax`
_SOFTMAX = """
    {x}_top = ReduceMax <keepdims = 1> ({x}, last)
    {x}_below = Sub ({x}, {x}_top)
{powers}
    {x}_double = Cast <to = 11> ({x}_powers)
    {x}_sum = ReduceSum <keepdims = 1> ({x}_double, last)
    {x}_inverse_double = Reciprocal ({x}_sum)
    {x}_inverse = Cast <to = 1> ({x}_inverse_double)
    {y} = Mul ({x}_powers, {x}_inverse)"""

_SIGMOID = f"""
    minus_logits = Neg (logits)
{exp("minus_logits", "decay")}
    denominator = Add (exp_one, decay)
    p = Div (exp_one, denominator)"""

_GROUPS = """
    groups_1 = Constant <value_ints = [{groups}]> ()
    keep_1 = Constant <value_ints = [{keep}]> ()
    two = Constant <value_ints = [2]> ()
    tokens_shape = Constant <value_ints = [0, 0]> ()
    by_group_shape = Concat <axis = 0> (tokens_shape, groups_1, last)
    by_group = Reshape (all_scores, by_group_shape)
    best_two, best_places = TopK (by_group, two)
    first_best, second_best = Split <axis = -1, num_outputs = 2> (best_two)
    group_column = Add (first_best, second_best)
    group_score = Squeeze (group_column, last)
    kept_score, kept_groups = TopK (group_score, keep_1)
    group_count = Squeeze (groups_1)
    group_zero = Constant <value_int = 0> ()
    group_one = Constant <value_int = 1> ()
    group_numbers = Range (group_zero, group_count, group_one)
    kept_column = Unsqueeze (kept_groups, last)
    is_kept = Equal (kept_column, group_numbers)
    is_kept_int = Cast <to = 6> (is_kept)
    second_last = Constant <value_ints = [-2]> ()
    any_kept_int = ReduceMax <keepdims = 0> (is_kept_int, second_last)
    any_kept = Cast <to = 9> (any_kept_int)
    kept_by_group = Unsqueeze (any_kept, last)
    never = Constant <value_float = -inf> ()
    left = Where (kept_by_group, by_group, never)
    all_shape = Shape (all_scores)
    score = Reshape (left, all_shape)"""

_NORMALIZE = """
    p_double = Cast <to = 11> (weights)
    p_sum = ReduceSum <keepdims = 1> (p_double, last)
    p_total = Cast <to = 1> (p_sum)
    floor = Constant <value_float = {floor}> ()
    divisor = Max (p_total, floor)
    of_one = Div (weights, divisor)"""


def _softmax(x: str, y: str) -> str:
    return _SOFTMAX.format(x=x, y=y, powers=exp(f"{x}_below", f"{x}_powers"))


def operation(graph: Graph, node: Node) -> Operation:
    """By the reference itself: there is little to compute, and a choice that differs is another model."""
    one = options(graph, node)

    def route(logits: np.ndarray) -> tuple[np.ndarray, ...]:
        found = expert_reference.route(
            logits.reshape(-1, one.experts), one.kept, one.kind, one.select, one.normalize, one.scale,
            one.floor, one.groups, one.keep,
        )  # fmt: skip
        return tuple(array.reshape(*logits.shape[:-1], one.kept) for array in found)

    return route


def backward(graph: Graph, node: Node, env: Env, choice: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of the shares [S, B, T, K] to the logits, the choice being what it is."""
    one, logits, chosen = options(graph, node), env[node.inputs[0]], env[node.outputs[0]]
    y = y * np.float32(one.scale)
    found = np.zeros((len(y), *logits.shape), np.float32)
    at = np.broadcast_to(chosen, y.shape)
    if one.kind == "topk_softmax":
        shares = expert_reference.softmax(np.take_along_axis(logits, chosen, -1))
        np.put_along_axis(found, at, shares * (y - (y * shares).sum(-1, keepdims=True)), -1)
        return (found,)
    p = expert_reference.softmax(logits) if one.kind == "softmax" else reference.sigmoid(logits)
    weights = np.take_along_axis(p, chosen, -1)
    if one.normalize:
        total = np.maximum(weights.sum(-1, keepdims=True), np.float32(one.floor))
        y = (y - (y * weights / total).sum(-1, keepdims=True)) / total
    np.put_along_axis(found, at, y, -1)
    if one.kind == "softmax":
        return (p * (found - (found * p).sum(-1, keepdims=True)),)
    return (found * p * (1 - p),)


def body(node: Node) -> str:
    attrs, selected = node.attrs, bool(node.attrs.get("selected"))
    kind = str(attrs["kind"])
    chances = {"softmax": _softmax("logits", "p"), "sigmoid": _SIGMOID}.get(
        kind, "\n    p = Identity (logits)"
    )
    grouped = int(attrs.get("groups", 1)) > 1
    lines = [chances, f"    all_scores = {'Add (p, select)' if selected else 'Identity (p)'}"]
    lines.append(_GROUPS.format(**attrs) if grouped else "    score = Identity (all_scores)")
    if kind == "topk_softmax":
        weigh = _softmax("weights", "of_one")
    elif attrs.get("normalize"):
        weigh = _NORMALIZE.format(floor=literal(float(attrs.get("floor", 0.0))))
    else:
        weigh = "    of_one = Identity (weights)"
    names = ", ".join(attrs)
    return f"""<{names}> ({"logits, select" if selected else "logits"}) => (choice, shares) {{
    last = Constant <value_ints = [-1]> ()
{chr(10).join(lines)}
    kept_1 = Constant <value_ints = [{attrs["kept"]}]> ()
    best, choice = TopK (score, kept_1)
    weights = GatherElements <axis = -1> (p, choice)
{weigh}
    scale = Constant <value_float = {literal(float(attrs.get("scale", 1.0)))}> ()
    shares = Mul (of_one, scale)
}}"""


ROUTE = Function("Route", operation, backward, body)
