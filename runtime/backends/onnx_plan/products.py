"""Products of the plan: integers of activations times weights that were unpacked when the model was loaded.

In the file a product is 20 nodes of unpacking, which onnxruntime would fold, and a product for each of the
two digits. Here the weights come as one matrix [k, n], in the form that the device multiplies best. All forms
give the same sums, which are integers:

- `uint8`, for the CPU: two products of uint8, of which the second has the wide channels only. int8
  activations have no fast x86 kernel.
- `double`, for CUDA: one product in float64, exact for sums below 2^53. 8 bytes a weight, made by
  onnxruntime when it folds constants.
- `int8`, for CUDA with little memory: one product of int8, the second digits as further rows. A byte a
  weight.

Legend: T tokens, k inputs, n outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flatlm.kernels_arm import layout
from flatlm.runtime.format.graph import Graph, Node

Arrays = dict[str, np.ndarray]  # of a node: what a product reads, by the name in its body


@dataclass(frozen=True, slots=True)
class Product:
    """Nodes that make `acc_float` of `whole_x` [B, T, k], integers in float32, and constants they read."""

    kind: str  # products of one kind have the same nodes
    nodes: str
    arrays: Arrays


HIGH_DIGIT = """
    half = Constant <value_float = 64.0> ()
    raised_x = Add (whole_x, half)
    part_of_digit = Constant <value_float = 0.0078125> ()
    in_digits = Mul (raised_x, part_of_digit)
    whole_digits = Floor (in_digits)
    high_x = Mul (whole_digits, wide_flags)
    digit = Constant <value_float = 128.0> ()
    taken = Mul (high_x, digit)
    low_x = Sub (whole_x, taken)
"""

_DOUBLE = """
    matrix_double = Cast <to = 11> (matrix)
    whole_double = Cast <to = 11> (whole_x)
    acc_double = MatMul (whole_double, matrix_double)
    acc_float = Cast <to = 1> (acc_double)
"""

_INT8 = """
    whole_8 = Cast <to = 3> (whole_x)
    acc = MatMulInteger (whole_8, matrix)
    acc_float = Cast <to = 1> (acc)
"""

_INT8_BOTH = f"""
{HIGH_DIGIT}
    both = Concat <axis = 1> (low_x, high_x)
    both_8 = Cast <to = 3> (both)
    both_acc = MatMulInteger (both_8, matrix)
    low_acc, high_acc = Split <axis = 1, num_outputs = 2> (both_acc)
    digit_int = Cast <to = 6> (digit)
    shifted_acc = Mul (high_acc, digit_int)
    acc = Add (low_acc, shifted_acc)
    acc_float = Cast <to = 1> (acc)
"""


def _uint8(x: str, plane: str, acc: str) -> str:
    """One digit's product; both zero points are 128."""
    return f"""
    {x}_positive = Add ({x}, digit)
    {x}_8 = Cast <to = 2> ({x}_positive)
    {acc} = MatMulInteger ({x}_8, {plane}, zero_point, zero_point)
"""


_ZERO_POINT = """
    digit = Constant <value_float = 128.0> ()
    zero_point = Cast <to = 2> (digit)
"""

_UINT8 = f"""
{_ZERO_POINT}
{_uint8("whole_x", "matrix", "acc")}
    acc_float = Cast <to = 1> (acc)
"""

_BOTH_SUMS = """
    digit_int = Cast <to = 6> (digit)
    shifted_acc = Mul (high_acc, digit_int)
    acc = Add (low_acc, shifted_acc)
    acc_float = Cast <to = 1> (acc)
"""

_UINT8_ALL_WIDE = f"""
{HIGH_DIGIT}
    zero_point = Cast <to = 2> (digit)
{_uint8("low_x", "matrix", "low_acc")}
{_uint8("high_x", "matrix", "high_acc")}
{_BOTH_SUMS}
"""

_UINT8_WIDE = f"""
{HIGH_DIGIT}
    zero_point = Cast <to = 2> (digit)
    wide_x = Gather <axis = -1> (high_x, wide_channels)
{_uint8("low_x", "matrix", "low_acc")}
{_uint8("wide_x", "wide_matrix", "high_acc")}
{_BOTH_SUMS}
"""


def weights_of(graph: Graph, node: Node) -> np.ndarray:
    """The integers of a product, int8 [k, n]: `Graph.totals`, but by columns at once.

    Bytes are put in order before they are parted into nibbles: a third of the time.
    """
    name, rows, columns = node.inputs[1], int(node.attrs["rows"]), int(node.attrs["columns"])
    bits = graph.bits(name)
    panels, steps, panel, lanes, halves = layout.packed_shape(rows, columns, bits)
    data = graph.array(name).view(np.uint8).reshape(panels, steps, panel, lanes)
    ordered = np.ascontiguousarray(data.transpose(1, 3, 0, 2))  # [step, lane, panel, row]
    if bits == 8:
        matrix = ordered.view(np.int8)
    else:
        matrix = np.empty((steps, halves, lanes, panels, panel), np.int8)
        for half in range(halves):
            nibbles = ordered >> (4 * half) & 15
            np.subtract(nibbles.view(np.int8), np.int8(layout.offset_of(bits)), out=matrix[:, half])
    matrix = matrix.reshape(steps * lanes * halves, panels * panel)
    delta, value = (graph.array(name) for name in node.inputs[-2:])
    if delta.size:
        table = layout.decode_excess(delta, value, *matrix.shape[::-1])
        matrix[table.columns, table.rows] += table.excess
    return np.ascontiguousarray(matrix[:columns, :rows])


def double(weights: np.ndarray, limit: np.ndarray) -> Product:
    """`weights`: of `weights_of`, from now on the product's; `limit` [k]: each channel's largest integer."""
    return Product("double", _DOUBLE, {"matrix": weights})


def int8(weights: np.ndarray, limit: np.ndarray) -> Product:
    """As `double`."""
    wide = limit > 127
    if not wide.any():
        return Product("int8", _INT8, {"matrix": weights})
    return Product("int8_both", _INT8_BOTH, {"matrix": weights, "wide_flags": wide.astype(np.float32)})


def uint8(weights: np.ndarray, limit: np.ndarray) -> Product:
    """As `double`."""
    wide, matrix = limit > 127, weights.view(np.uint8)
    matrix ^= np.uint8(128)
    if not wide.any():
        return Product("uint8", _UINT8, {"matrix": matrix})
    arrays: Arrays = {"matrix": matrix, "wide_flags": wide.astype(np.float32)}
    if wide.all():
        return Product("uint8_all_wide", _UINT8_ALL_WIDE, arrays)
    arrays |= {"wide_channels": np.flatnonzero(wide), "wide_matrix": matrix[wide]}
    return Product("uint8_wide", _UINT8_WIDE, arrays)


PRODUCTS = {"uint8": uint8, "double": double, "int8": int8}
