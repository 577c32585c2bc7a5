"""FlatExperts: the integer products of each token's chosen experts, every row in a step of its own."""

from __future__ import annotations

import numpy as np

from flatlm.export.onnx_text.choices import by_expert, rows
from flatlm.export.onnx_text.in_steps import in_steps
from flatlm.export.onnx_text.product import DIGITS, either
from flatlm.export.onnx_text.unpack import UNPACK
from flatlm.runtime.format.functions import SIGNED
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.ops import flat_experts, named

from .experts import read_by
from .flat_linear import token_linear
from .function import Function, Operation

_OF_EXPERT = f"""
            own_low = Gather (low_x, own_rows)
            own_high = Gather (high_x, own_rows)
            low_weight = Gather (by_number, expert)
            high_weight = Gather (low_weight, wide)
{either("own_low", "own_high")}
            shifted_acc = Mul (high_acc, digit_int)
            padded_acc = Add (low_acc, shifted_acc)
            acc = Slice (padded_acc, first_axis, outputs_1, last)
            acc_float = Cast <to = 1> (acc)
            own_scale = Gather (scale, expert)
            by_row = Mul (acc_float, own_scale)
            own_step = Gather (step, own_rows)
            scaled = Mul (by_row, own_step)
            own_bias = Gather (bias, expert)
            of_expert = Add (scaled, own_bias)"""

_BODY = f"""<experts, rows, columns, offset, levels>
    (x, weight, choice, scale, bias, limit, excess_start, excess_delta, excess_value, signed) => (y) {{
{UNPACK}
    levels_int = Constant <value_int: int = @levels> ()
    most = Cast <to = 1> (levels_int)
    outputs_1 = Shape <start = 1> (bias)
    experts_1 = Shape <start = 0, end = 1> (bias)
    experts = Squeeze (experts_1, first_axis)
{rows()}{in_steps("flat_x")}
{DIGITS}
    digit_int = Cast <to = 6> (digit)
    own_order = Slice (order, first_axis, columns)
    in_order = Gather <axis = 0> (plane, own_order)
    apart_shape = Concat <axis = 0> (columns, experts_1, last)
    apart = Reshape (in_order, apart_shape)
    by_number = Transpose <perm = [1, 0, 2]> (apart)
{by_expert(_OF_EXPERT)}
}}"""


def operation(graph: Graph, node: Node) -> Operation:
    roles = named(node)
    scale, bias, limit = (graph.array(roles[role]) for role in ("scale", "bias", "limit"))
    levels = int(node.attrs["levels"])

    def run(x: np.ndarray, choice: np.ndarray) -> tuple[np.ndarray, ...]:
        y = np.empty((*choice.shape, scale.shape[1]), np.float32)
        for e, mine, own in read_by(x, choice):
            weights = flat_experts.totals(graph, node, e).astype(np.float32)
            (y[mine],) = token_linear(weights, scale[e], bias[e], limit, levels)(own)
        return (y,)

    return run


def body(node: Node) -> str:
    return _BODY


def parameters(graph: Graph, node: Node) -> int:
    return int(node.attrs["experts"]) * int(node.attrs["rows"]) * int(node.attrs["columns"])


FLAT_EXPERTS = Function(
    "FlatExperts", operation, body=body, file_inputs=(SIGNED,), matrix="experts", parameters=parameters
)
