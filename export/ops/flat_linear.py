"""FlatLinear and FlatLinearToken: the integer layer, with one step for the tensor or one for each token."""

from __future__ import annotations

import numpy as np

from flatlm.export.onnx_text.in_steps import in_steps
from flatlm.export.onnx_text.product import PRODUCT
from flatlm.export.onnx_text.unpack import UNPACK
from flatlm.kernels_arm.reference import FLOOR
from flatlm.runtime.format.functions import LINEAR, SIGNED, TOKEN_LINEAR
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.ops import named

from .function import Function, Operation

_BODY = f"""<rows, columns, offset, levels>
    (x, weight, scale, bias, inverse_scale, limit, excess_delta, excess_value, signed) => (y) {{
{UNPACK}
    steps = Mul (x, inverse_scale)
    rounded = Round (steps)
    lowest = Neg (limit)
    not_below = Max (rounded, lowest)
    whole_x = Min (not_below, limit)
{PRODUCT}
    scaled = Mul (acc_float, scale)
    y = Add (scaled, bias)
}}"""

_TOKEN_BODY = f"""<rows, columns, offset, levels>
    (x, weight, scale, bias, limit, excess_delta, excess_value, signed) => (y) {{
{UNPACK}
    levels_int = Constant <value_int: int = @levels> ()
    most = Cast <to = 1> (levels_int){in_steps("x")}
{PRODUCT}
    by_row = Mul (acc_float, scale)
    scaled = Mul (by_row, step)
    y = Add (scaled, bias)
}}"""


def operation(graph: Graph, node: Node) -> Operation:
    roles = named(node)
    weights, scale, bias, limit = _constants(graph, roles, graph.totals(node))
    return flat_linear(weights, scale, bias, graph.array(roles["inverse_scale"]), limit)


def token_operation(graph: Graph, node: Node) -> Operation:
    weights, scale, bias, limit = _constants(graph, named(node), graph.totals(node))
    return token_linear(weights, scale, bias, limit, int(node.attrs["levels"]))


def _constants(graph: Graph, roles: dict[str, str], totals: np.ndarray) -> tuple[np.ndarray, ...]:
    return (totals.astype(np.float32), *(graph.array(roles[role]) for role in ("scale", "bias", "limit")))


def flat_linear(
    weights: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    inverse_scale: np.ndarray | np.float32,
    limit: np.ndarray,
) -> Operation:
    """The integer layer with weights [n, k] as float32 integers; the sum of pieces is X itself."""
    inverse_scale, limit = np.float32(inverse_scale), limit.astype(np.float32)

    def flat_linear(x: np.ndarray) -> tuple[np.ndarray, ...]:
        x = x * inverse_scale
        np.rint(x, out=x)
        np.clip(x, -limit, limit, out=x)
        y = x @ weights.T
        y *= scale
        y += bias
        return (y,)

    return flat_linear


def token_linear(
    weights: np.ndarray, scale: np.ndarray, bias: np.ndarray, limit: np.ndarray, levels: int
) -> Operation:
    """The same with a step for each token."""

    def token_linear(x: np.ndarray) -> tuple[np.ndarray, ...]:
        steps, step = token_steps(x, limit, levels)
        y = steps @ weights.T
        y *= scale
        y *= step
        y += bias
        return (y,)

    return token_linear


def token_steps(x: np.ndarray, limit: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """x [..., k] → X as float32 integers, and each token's step [..., 1]: `reference.quantize_token`."""
    most = np.float32(levels)
    largest = np.maximum((np.abs(x) * (most / limit.astype(np.float32))).max(-1, keepdims=True), FLOOR)
    steps = x * (most / largest)
    return np.rint(steps, out=steps), largest / most


def body(node: Node) -> str:
    return _BODY


def token_body(node: Node) -> str:
    return _TOKEN_BODY


def parameters(graph: Graph, node: Node) -> int:
    return int(node.attrs["rows"]) * int(node.attrs["columns"])


FLAT_LINEAR = Function(
    LINEAR, operation, body=body, file_inputs=(SIGNED,), matrix="linear", parameters=parameters
)
FLAT_LINEAR_TOKEN = Function(
    TOKEN_LINEAR,
    token_operation,
    body=token_body,
    file_inputs=(SIGNED,),
    matrix="linear",
    parameters=parameters,
)
