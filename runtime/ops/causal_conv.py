"""CausalConv: each channel becomes the weighted sum of its last `taps` values, or silu of that.

As ONNX's CausalConvWithState, but tokens before channels. Its state is the last taps − 1 inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flatlm.kernels_arm import layout, ops, recurrent
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.records import held, record, zeros
from flatlm.runtime.format.graph import Attribute, Graph, Node
from flatlm.runtime.format.signature import Attr, Constant, Signature, Traits, misfit
from flatlm.runtime.format.values import NEW_STATE, STATE, Value, Values, streams
from flatlm.runtime.format.values import state as state_value
from flatlm.runtime.lowering import Group, Lowering
from flatlm.runtime.ops.function import Operation, Step
from flatlm.runtime.states import Description, conv_rows

NAME, TRAITS = "CausalConv", Traits()
MOST_TAPS = 64
_SIGNATURE = Signature(
    {
        "x": None,
        "weight": Constant("float32", ("channels", "taps")),
        "bias": Constant("float32", ("channels",)),
        "past_conv": None,
    },
    ("y", "present_conv"),
    {"channels": Attr(int), "taps": Attr(int), "act": Attr(str, ("", "silu"), default="")},
)


def signature(attrs: Mapping[str, Attribute]) -> Signature:
    return _SIGNATURE


def check(graph: Graph, node: Node) -> None:
    if not 2 <= _sizes(node)[1] <= MOST_TAPS:
        raise misfit(node, f"{node.attrs['taps']} taps, there is room for 2 … {MOST_TAPS}")


def _sizes(node: Node) -> tuple[int, int]:
    """Channels and taps."""
    return int(node.attrs["channels"]), int(node.attrs["taps"])


def values(graph: Graph, node: Node, given: Values) -> tuple[Values, Values]:
    channels, taps = _sizes(node)
    past, present = (state_value(prefix, channels, taps - 1) for prefix in (STATE, NEW_STATE))
    return (*streams(channels), past), (*streams(channels), present)


def state(graph: Graph, node: Node, values: Mapping[str, Value]) -> Description:
    return conv_rows.ConvRows(*_sizes(node))


def numpy(graph: Graph, node: Node) -> Operation:
    weight, bias = (graph.array(name) for name in node.inputs[1:3])
    act, (channels, taps) = str(node.attrs.get("act", "")), _sizes(node)

    def run(step: Step, x: np.ndarray, past: None) -> tuple[np.ndarray, ...]:
        rows = np.concatenate([step.recall(node.name, (taps - 1, channels)), x])
        step.keep(node.name, rows[len(x) :])
        return recurrent.conv(rows, weight, bias, act), rows[len(x) :]

    return run


def lower(lowering: Lowering, group: Group) -> None:
    """CONV."""
    node = group.node
    channels, taps = _sizes(node)
    weight, bias = (lowering.graph.array(name) for name in node.inputs[1:3])
    width = padded(channels, layout.ROWS)
    by_tap = np.zeros((taps, width), np.float32)
    by_tap[:, :channels] = weight.T
    x, out = lowering.array(node.inputs[0]), lowering.rows(node.outputs[0], channels)
    lowering.add(node, record(
        ops.CONV, C_IN=x.ctypes.data, C_IN_STRIDE=x.strides[0], C_OUT=out.ctypes.data,
        C_OUT_STRIDE=out.strides[0], C_COLUMNS=channels, C_TAPS=taps, C_SILU=int("act" in node.attrs),
        C_WEIGHT=lowering.held(by_tap, np.float32), C_BIAS=held(lowering.keep, bias, np.float32, width),
        C_ZEROS=zeros(lowering.keep, (width,)).ctypes.data, **lowering.states[node.name].fields("C"),
    ))  # fmt: skip
    lowering.need(8 * taps)
