"""What export knows of recurrent functions: the floats of the reference, gradients, folds, and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flatlm.export import execute
from flatlm.export.ops import of
from flatlm.export.ops.function import Channels
from flatlm.runtime.errors import FormatError
from flatlm.runtime.format.functions import check_graph
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.widths import check_values
from flatlm.runtime.ops import OPS
from tests.recurrent_graphs import recurrent_graph

H, J, K, V = 4, 2, 5, 3
SIZES = {"num_heads": H, "key_heads": J, "key_size": K, "value_size": V}
STREAMS = {"q": J * K, "k": J * K, "v": H * V, "dt": H, "beta": H}


def one_node(op: str, inputs: list[str], constants: dict[str, np.ndarray], outputs=("y",), **attrs) -> Graph:
    tensors = {name: Tensor.of(np.asarray(array, np.float32)) for name, array in constants.items()}
    return Graph([Node(op, tuple(inputs), outputs, attrs, "n")], tensors)


def linear_attention(rng, rule: str, **options) -> Graph:
    delta = rule == "gated_delta"
    streams = [name for name in STREAMS if delta or name != "beta"]
    constants = {"bias": rng.standard_normal(H), "decay": -rng.random(H)}
    constants |= {} if delta else {"skip": rng.standard_normal(H)}
    inputs = [*streams, *constants, "past_state"]
    return one_node(
        "LinearAttention", inputs, constants, ("y", "state"), update_rule=rule, **SIZES, **options
    )


def graphs() -> dict[str, tuple[Graph, dict[str, int]]]:
    """By name, a graph of one node and the widths of its inputs."""
    rng = np.random.default_rng(0)
    conv = {"w": rng.standard_normal((6, 4)), "b": rng.standard_normal(6)}
    sizes, inputs = {"channels": 6, "taps": 4}, ["x", "w", "b", "past_conv"]
    pair = {"a": 7, "b": 7}
    return {
        "delta": (linear_attention(rng, "gated_delta"), STREAMS),
        "gated": (linear_attention(rng, "gated"), {k: v for k, v in STREAMS.items() if k != "beta"}),
        "least": (linear_attention(rng, "gated_delta", least_step=0.7), STREAMS),
        "conv": (one_node("CausalConv", inputs, conv, ("y", "c"), **sizes), {"x": 6}),
        "silu conv": (one_node("CausalConv", inputs, conv, ("y", "c"), **sizes, act="silu"), {"x": 6}),
        "norm": (
            one_node("GroupedNorm", ["x", "w"], {"w": rng.standard_normal(6)}, size=3, epsilon=1e-3),
            {"x": 6},
        ),
        "multiply": (one_node("Mul", ["a", "b"], {}), pair),
        "parts": (one_node("Parts", ["x"], {}, ("y", "z"), sizes="4 2"), {"x": 6}),
    }


@pytest.mark.parametrize("length", [1, 3, 40])
@pytest.mark.parametrize("name", graphs())
def test_gradients_are_those_of_finite_differences(name, length):
    graph, widths = graphs()[name]
    (node,) = graph.nodes
    rng, function = np.random.default_rng(length), of(node.op)
    given = {key: rng.standard_normal((2, length, width)) / 2 for key, width in widths.items()}
    run = function.operation(graph, node)
    outputs = run(*given.values())
    towards = [rng.standard_normal((1, *y.shape)) for y in outputs]
    found = function.backward(graph, node, given, *towards)
    assert len(found) == len(given)
    for key, gradient in zip(given, found, strict=True):
        step = 1e-3 * rng.standard_normal(given[key].shape)
        moved = [run(*{**given, key: given[key] + sign * step}.values()) for sign in (1, -1)]
        by = sum(float(np.vdot(t, a - b)) for t, a, b in zip(towards, *moved, strict=True))
        assert np.vdot(gradient[0], step) == pytest.approx(by / 2, rel=5e-3, abs=1e-5), key


class Begun:
    """A numpy backend's step without a past."""

    def recall(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def keep(self, name: str, state: np.ndarray) -> None:
        """Nothing comes after it."""


@pytest.mark.parametrize("name", graphs())
def test_the_float_run_is_the_reference_but_for_roundings(name):
    graph, widths = graphs()[name]
    (node,) = graph.nodes
    rng = np.random.default_rng(1)
    given = [rng.standard_normal((2, 20, width)).astype(np.float32) for width in widths.values()]
    found = of(node.op).operation(graph, node)(*given)
    exact, past = OPS[node.op].numpy(graph, node), [None] * any("past" in name for name in node.inputs)
    for window in range(2):
        expected = exact(Begun(), *(x[window] for x in given), *past)
        for ours, theirs in zip(found, expected, strict=False):
            np.testing.assert_allclose(ours[window], theirs, rtol=2e-5, atol=2e-5)


def test_a_scale_of_the_output_folds_into_the_norm_before_the_gate_and_into_parts_before_a_product():
    rng, width = np.random.default_rng(2), 6
    constants = {"w": rng.standard_normal((18, 5)), "wb": rng.standard_normal(18), "n": rng.random(width)}
    nodes = [
        Node("Linear", ("x", "w", "wb"), ("in",), {}, "in"),
        Node("Parts", ("in",), ("a", "z", "c"), {"sizes": "6 6 6"}, "parts"),
        Node("GroupedNorm", ("a", "n"), ("normed",), {"size": 3, "epsilon": 1e-6}, "normed"),
        Node("OutputGate", ("normed", "z"), ("gated",), {"act": "silu"}, "gated"),
        Node("Mul", ("c", "gated"), ("y",), {}, "y"),
    ]
    tensors = {name: Tensor.of(array.astype(np.float32)) for name, array in constants.items()}
    graph, channels = Graph(nodes, tensors), Channels("y", np.arange(width), width)
    first = of("Mul").origin(graph, nodes[4], channels)
    assert first.value == "c"
    rows = of("Parts").origin(graph, nodes[1], first)
    assert (rows.value, rows.index.tolist(), rows.width) == ("in", list(range(12, 18)), 18)
    assert of("OutputGate").origin(graph, nodes[3], replace(channels, value="gated")).value == "normed"
    x, factor = rng.standard_normal((1, 3, 5)).astype(np.float32), np.float32([1, 2, 3, 4, 5, 6])

    def output() -> np.ndarray:
        env = {"x": x}
        execute.run(execute.prepare(graph, nodes), env)
        return env["y"]

    before = output()
    of("GroupedNorm").scale(graph, nodes[2], factor)
    np.testing.assert_allclose(output(), before * factor, rtol=1e-5)


def check(graph: Graph) -> None:
    check_graph(graph)
    check_values(graph)


def changed(mixer: str, op: str, inputs: dict[int, str] | None = None, **attrs) -> Graph:
    """A recurrent graph whose first node of that op has other attributes (None: without it) and inputs."""
    graph = recurrent_graph(mixer)
    at = next(i for i, node in enumerate(graph.nodes) if node.op == op)
    node, names = graph.nodes[at], list(graph.nodes[at].inputs)
    for place, name in (inputs or {}).items():
        names[place] = name
    kept = {name: value for name, value in {**node.attrs, **attrs}.items() if value is not None}
    graph.nodes[at] = replace(node, inputs=tuple(names), attrs=kept)
    return graph


def rising() -> Graph:
    graph = recurrent_graph("delta")
    graph.constants["layers.0.delta.attend.decay"].data[2] = 0.5
    return graph


def unfinite() -> Graph:
    graph = recurrent_graph("conv")
    graph.constants["layers.0.conv.conv.weight"].data[3, 1] = np.nan
    return graph


BAD = {
    "sizes that are none": (lambda: changed("conv", "Parts", sizes="20 x 20"), "sizes are '20 x 20'"),
    "a size of none": (lambda: changed("conv", "Parts", sizes="20 0 20"), "sizes are '20 0 20'"),
    "other sizes": (lambda: changed("conv", "Parts", sizes="20 20 21"), "is a stream of 60, .* of 61"),
    "a part too few": (lambda: changed("conv", "Parts", sizes="20 40"), "3 outputs, not 1 and 2"),
    "taps without weights": (
        lambda: changed("conv", "CausalConv", taps=5), r"shape \[20, 4\], not \[20, 5\]"
    ),
    "one tap": (lambda: changed("conv", "CausalConv", taps=1), r"not \[20, 1\]"),
    "another act": (lambda: changed("conv", "CausalConv", act="relu"), "'act' is 'relu'"),
    "weights that are no numbers": (unfinite, "weight .* has nan"),
    "a rule of tomorrow": (
        lambda: changed("delta", "LinearAttention", update_rule="kimi"), "'update_rule' is 'kimi'"
    ),
    "key heads that do not divide": (
        lambda: changed("delta", "LinearAttention", key_heads=3), "4 heads and 3 key heads"
    ),
    "a decay that grows": (rising, "decay has 0.5: above 0"),
    "a step without end": (
        lambda: changed("gated", "LinearAttention", least_step=1e9), "least_step is 1000000000"
    ),
    "the state of the other": (
        lambda: changed("delta", "LinearAttention", {7: "past_conv.0"}), "is the cache of another node"
    ),
    "groups that do not divide": (
        lambda: changed("delta", "GroupedNorm", size=21), "80 columns are not groups of 21"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_graph_that_does_not_fit_is_refused_by_name(name):
    make, message = BAD[name]
    graph = make()
    with pytest.raises(FormatError, match=message):
        check(graph)
