"""Head, body, layers and blocks of a graph, by the names of its nodes."""

from __future__ import annotations

import pytest

from flatlm.export.archs import build_graph
from flatlm.export.sources import open_source
from flatlm.runtime.format.graph import Graph, Node, in_body, layer_number, within_layer
from tests.tiny_graphs import quantized_graph
from tests.tiny_models import tiny_model


def graph_of(*names: str) -> Graph:
    return Graph([Node("Add", (), (name,), name=name) for name in names])


def names(nodes) -> list[str]:
    return [node.name for node in nodes]


@pytest.mark.parametrize(
    ("name", "number", "inside"),
    [
        ("layers.3.attention.qkv", 3, "attention.qkv"),
        ("layers.12.mlp.down.weight", 12, "mlp.down.weight"),
        ("head.weight", None, "head.weight"),
        ("model.layers.3.norm", None, "model.layers.3.norm"),
        ("layers.norm", None, "layers.norm"),
    ],
)
def test_a_name_tells_its_layer(name, number, inside):
    assert (layer_number(name), within_layer(name), in_body(name)) == (number, inside, number is not None)


def test_a_model_is_embedding_layers_and_head(tmp_path):
    graph = build_graph(open_source(str(tiny_model(tmp_path, layers=3))))
    assert graph.head.outputs == ("logits",)
    assert [{layer_number(node.name) for node in layer} for layer in graph.layers] == [{0}, {1}, {2}]
    assert [node for layer in graph.layers for node in layer] == graph.body
    first, *layers, last = graph.blocks
    assert (names(first), layers, names(last)) == (["rotary", "embedding"], graph.layers, ["norm", "head"])


def test_a_node_named_after_no_layer_stays_with_those_before_it():
    graph = graph_of("embedding", "layers.0.a", "between", "layers.0.b", "layers.1.a", "head")
    assert [names(layer) for layer in graph.layers] == [
        ["layers.0.a", "between", "layers.0.b"],
        ["layers.1.a"],
    ]
    assert [name for block in graph.blocks for name in names(block)] == names(graph.nodes)


def test_a_graph_without_layers_is_one_block():
    graph = graph_of("norm", "head")
    assert (graph.body, graph.layers, graph.blocks) == ([], [], [graph.nodes])


def test_a_layer_alone_is_one_block():
    graph = graph_of("layers.4.a", "layers.4.b")
    assert graph.blocks == graph.layers == [graph.nodes]


def test_another_head_leaves_the_graph_it_was_made_of():
    graph = quantized_graph()
    nodes, constants = list(graph.nodes), dict(graph.constants)
    head = Node("Linear", ("x", "weight"), ("logits",), name="other")
    other = graph.with_head(head, {"weight": graph.constants[graph.head.inputs[1]]})
    assert (other.head, other.nodes[:-1]) == (head, nodes[:-1])
    assert "weight" in other.constants
    assert (graph.nodes, dict(graph.constants)) == (nodes, constants)
