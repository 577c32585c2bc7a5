"""FlatEmbedding: rows of an integer matrix by token id, each times its scale."""

from __future__ import annotations

from flatlm.export.onnx_text.unpack import UNPACK
from flatlm.runtime.format.graph import Graph, Node

from .flat_linear import parameters
from .function import Function, Operation

_BODY = f"""<rows, columns, offset> (ids, weight, scale, excess_delta, excess_value) => (y) {{
{UNPACK}
    columns = Constant <value_int: int = @columns> ()
    columns_1 = Unsqueeze (columns, first_axis)
    own = Slice (order, first_axis, columns_1)
    picked = Gather <axis = 1> (plane, ids)
    ordered = Gather <axis = 0> (picked, own)
    embedded = Transpose <perm = [1, 2, 0]> (ordered)
    positive = Cast <to = 1> (embedded)
    zero_point = Cast <to = 1> (zero_point_int)
    integers = Sub (positive, zero_point)
    row_scale = Gather (scale, ids)
    row_scale_1 = Unsqueeze (row_scale, last)
    y = Mul (integers, row_scale_1)
}}"""


def operation(graph: Graph, node: Node) -> Operation:
    weight, scale = graph.totals(node), graph.array(node.inputs[2])
    return lambda ids: (weight[ids] * scale[ids][..., None],)


def body(node: Node) -> str:
    return _BODY


FLAT_EMBEDDING = Function("FlatEmbedding", operation, body=body, matrix="table", parameters=parameters)
