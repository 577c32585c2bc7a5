"""A graph whose nodes do not mean the same by a value is refused, and the message names node and value."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.kernels_arm import layout
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.errors import BackendError, FormatError
from flatlm.runtime.format.functions import check_graph
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.nested import high_plane
from flatlm.runtime.format.widths import caches_of, check_values
from tests.tiny_graphs import CONTEXT, HIDDEN, VOCABULARY, packed, quantized_graph

SECOND = "layers.1.attention.append"
ATTEND, QKV = "layers.0.attention.attend", "layers.0.attention.qkv"
HEADS, ROTATE, APPEND = (f"layers.0.attention.{name}" for name in ("heads", "rotate_q", "append"))


@pytest.fixture
def graph() -> Graph:
    return quantized_graph()


def check(graph: Graph) -> None:
    check_graph(graph)
    check_values(graph)


def at(graph: Graph, name: str) -> int:
    return next(i for i, node in enumerate(graph.nodes) if node.name == name)


def change(graph: Graph, node: str, *, attrs=None, **changes) -> None:
    old = graph.nodes[at(graph, node)]
    graph.nodes[at(graph, node)] = replace(old, attrs={**old.attrs, **(attrs or {})}, **changes)


def reads(graph: Graph, node: str, which: int, name: str) -> None:
    inputs = list(graph.nodes[at(graph, node)].inputs)
    inputs[which] = name
    change(graph, node, inputs=tuple(inputs))


def attributes(node, **attrs):
    return lambda graph: change(graph, node, attrs=attrs)


def without(node):
    return lambda graph: graph.nodes.pop(at(graph, node))


def constant(name, element):
    def edit(graph):
        array = graph.array(name).copy()
        array.reshape(-1)[-1:] = element
        graph.constants[name] = Tensor.of(array)

    return edit


def vocabulary_of(number):
    return lambda graph: graph.metadata.update(vocab_size=number)


def no_attention(graph):
    """Without its attentions and their caches, as a file that only looks like a model."""
    for i in range(2):
        for name in ("heads", "rotate_q", "rotate_k", "append", "attend"):
            graph.nodes.pop(at(graph, f"layers.{i}.attention.{name}"))
        reads(graph, f"layers.{i}.attention.out", 0, f"layers.{i}.attention.qkv")
    del graph.inputs[2:], graph.outputs[1:]


def unread_product(graph):
    node = graph.nodes[at(graph, QKV)]
    graph.nodes.insert(at(graph, QKV), replace(node, outputs=("more",), name="more"))


def sum_of_heads(graph):
    """What a nested head would be, if heads could be nested."""
    change(graph, "head", outputs=("high",))
    graph.nodes.append(replace(graph.nodes[-1], outputs=("low",), name="low"))
    graph.nodes.append(Node("Add", ("high", "low"), ("logits",), {}, "sum"))


def narrow_table(graph):
    graph.constants["rotary.inverse_frequency"] = Tensor.of(np.ones(3, np.float32))


def other_heads(graph):
    """Fits the product before it and, by a gate, what comes after; its cache is not like the first's."""
    attend = "layers.1.attention.attend"
    change(graph, "layers.1.attention.heads", attrs={"num_heads": 8, "kv_num_heads": 1})
    graph.nodes.insert(at(graph, attend) + 1, Node("Gated", (attend,), ("half",), {"act": "silu"}, "half"))
    name, columns = "layers.1.attention.out", 16
    weight, delta, value = packed(np.ones((HIDDEN, columns), np.int8), 8)
    arrays = {"limit": np.full(columns, 127, np.float32), "excess_delta": delta, "excess_value": value}
    graph.constants |= {f"{name}.{role}": Tensor.of(array) for role, array in arrays.items()}
    graph.constants[f"{name}.weight"] = weight
    inputs = graph.nodes[at(graph, name)].inputs
    change(graph, name, inputs=("half", *inputs[1:]), attrs={"columns": columns, "offset": 0})


def second_reader_of_qkv(graph):
    """After the attention, which has rotated it in place."""
    gate = graph.nodes[at(graph, "layers.0.mlp.act")]
    half = replace(gate, inputs=(QKV,), outputs=("half",), name="half")
    again = replace(graph.nodes[at(graph, QKV)], inputs=("half", *graph.nodes[at(graph, QKV)].inputs[1:]))
    after = at(graph, ATTEND) + 1
    graph.nodes[after:after] = [half, replace(again, outputs=("again",), name="again")]


REFUSED = {
    "more heads": (attributes(HEADS, num_heads=8), r"heads' \(Hea.*stream of 40.*reads a stream of 48"),
    "heads far beyond": (attributes(HEADS, num_heads=3000), "qkv.*stream of 40, the node reads"),
    "larger heads": (attributes(HEADS, head_size=8), "qkv.*stream of 40, the node reads"),
    "fewer key heads": (attributes(HEADS, kv_num_heads=1), "reads a stream of 32"),
    "a narrow table": (narrow_table, "cos 'cos' is a rotary table of 3, the node reads a rotary table of 2"),
    "a stream as table": (lambda g: reads(g, ROTATE, 1, "embedding"), "cos 'embedding' is a stream of 20"),
    "ids as positions": (lambda g: reads(g, "rotary", 0, "input_ids"), "is token ids, the node reads pos"),
    "positions as ids": (lambda g: reads(g, "embedding", 0, "position_ids"), "ids 'position_ids'"),
    "other columns": (lambda g: reads(g, "layers.0.mlp.norm", 0, QKV), "x .*stream of 40.*a stream of 20"),
    "an odd gate": (lambda g: reads(g, "layers.0.mlp.act", 0, "cos"), "gate_up 'cos' is a rotary table"),
    "unequal summands": (lambda g: reads(g, "layers.0.mlp.add", 1, QKV), "b '.*qkv' is a stream of 40"),
    "a sum of one": (
        lambda g: change(g, "layers.0.mlp.add", inputs=(QKV, QKV)), "adds 'layers.0.attention.qkv' to itself"
    ),
    "a cache of two": (lambda g: reads(g, SECOND, 2, "past_key_values.0.key"), "the cache of another"),
    "key and value of one": (lambda g: reads(g, APPEND, 3, "past_key_values.0.key"), "cache of another node"),
    "a stream as cache": (lambda g: reads(g, APPEND, 2, "embedding"), "past_key 'embedding' is a stream"),
    "another reader of qkv": (second_reader_of_qkv, "has another reader"),
    "equal names": (lambda g: change(g, QKV, name="head"), "every node needs a name of its own.*'head'"),
    "no name": (lambda g: change(g, QKV, name=""), "every node needs a name of its own, one has no name"),
    "equal inputs": (lambda g: g.inputs.append(g.inputs[2]), "every graph input needs a name of its own"),
    "equal outputs": (lambda g: g.outputs.append(g.outputs[2]), "every graph output needs a name"),
    "an input too many": (lambda g: g.inputs.append("past"), "no node reads the graph input 'past'"),
    "a constant as input": (lambda g: g.inputs.append("norm.weight"), "'norm.weight' is a constant and"),
    "no ids": (lambda g: g.inputs.remove("position_ids"), "'position_ids'"),
    "a cache that stays": (lambda g: g.outputs.pop(), "'present.1.value' must be an output"),
    "a value that leaves": (lambda g: g.outputs.append(QKV), f"'{QKV}' must not be an output"),
    "a dead product": (unread_product, "node 'more'.*no node reads 'more'"),
    "no attention": (no_attention, "the graph has no attention"),
    "no nodes": (lambda g: (g.nodes.clear(), g.outputs.clear()), "the graph has no attention"),
    "no head": (without("head"), "no node computes the output 'logits'"),
    "a sum as head": (sum_of_heads, "the last node must be a product that computes 'logits'"),
    "another vocabulary": (vocabulary_of("10000"), "'embedding'.*53 rows, .*vocab_size is 10000"),
    **{
        f"vocabulary {text!r}": (vocabulary_of(text), "the metadata's vocab_size is")
        for text in ("", "0", "-5", "53.0", " 53", "5_3", "٥٣", "1" * 30)
    },
    "no vocabulary": (lambda g: g.metadata.pop("vocab_size"), "the metadata's vocab_size is ''"),
    **{
        f"context {text!r}": (lambda g, t=text: g.metadata.update(context_length=t), "context_length is")
        for text in ("0", "-5", str(1 << 40))
    },
    **{
        f"{role} {number}": (constant(f"layers.0.attention.qkv.{role}", number), f"{role} '.*qkv.{role}'")
        for role in ("scale", "bias", "inverse_scale")
        for number in (np.nan, np.inf)
    },
    "a norm of NaN": (constant("layers.1.mlp.norm.weight", np.nan), "weight 'layers.1.mlp.norm.weight' has"),
    "a frequency of inf": (constant("rotary.inverse_frequency", np.inf), "inverse_frequency"),
    "a huge bias": (constant("layers.0.attention.qkv.bias", 1e38), "not finite numbers within"),
    "a negative inverse scale": (constant("layers.0.attention.qkv.inverse_scale", -1), "above 0"),
    **{
        f"epsilon {number}": (attributes("norm", epsilon=number), "'norm'.*epsilon is")
        for number in (np.nan, np.inf, -1.0, 0.0)
    },
    **{
        f"scale {number}": (attributes(ATTEND, scale=number), "attend'.* scale is")
        for number in (np.nan, np.inf, 1e38, -1.0)
    },
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_graph_that_does_not_agree_with_itself_is_refused(graph, case):
    edit, match = REFUSED[case]
    check(graph)
    edit(graph)
    with pytest.raises(FormatError, match=match):
        check(graph)


@pytest.mark.parametrize("part", ["weight", "excess"])
def test_an_embedding_with_something_in_its_padding_is_refused(graph, part):
    if part == "weight":
        tensor = graph.constants["embedding.weight"]
        data = tensor.data.copy()
        steps = data.reshape(-1, layout.padded(HIDDEN, 16) // 8, 64)
        steps[1, -1, 3] ^= 1  # a column beyond the last
        graph.constants["embedding.weight"] = dataclasses.replace(tensor, data=data)
    else:
        graph.constants["embedding.excess_delta"] = Tensor.of(np.array([HIDDEN + 2], np.uint8))
        graph.constants["embedding.excess_value"] = Tensor.of(np.array([99], np.int8))
    with pytest.raises(FormatError, match=r"'embedding'.*padding of 'embedding.weight' beyond 20 columns"):
        check(graph)


def test_two_entries_of_excess_at_one_position_are_refused(graph):
    """A row of more entries than columns would be gathered beyond its buffer."""
    entries = 3 * HIDDEN
    graph.constants[f"{QKV}.excess_delta"] = Tensor.of(np.zeros(entries, np.uint8))
    graph.constants[f"{QKV}.excess_value"] = Tensor.of(np.full(entries, 99, np.int8))
    with pytest.raises(FormatError, match=f"'{QKV}'.*two entries of excess at one position"):
        check(graph)


# ---- what the kernels do not depend on
def both(graph: Graph) -> list[np.ndarray]:
    check(graph)
    ids, found = np.arange(CONTEXT) * 5 % VOCABULARY, []
    for backend_class in (NativeBackend, NumpyBackend):
        backend = backend_class(SimpleNamespace(graph=graph), threads=1)
        found.append(backend.forward(ids, CONTEXT))
        backend.close()
    return found


def test_excess_counts_from_the_plane_whatever_stands_there(graph):
    before = both(graph)[0]
    tensor = graph.constants["embedding.weight"]
    rows, columns = VOCABULARY, HIDDEN
    excess = [graph.array(f"embedding.{part}") for part in ("excess_delta", "excess_value")]
    plane = layout.unpack(tensor.data, rows, columns, 4)
    outside = np.abs(layout.totals_of(tensor.data, rows, columns, 4, *excess)) > 8
    plane[outside] = 3  # the exporter writes the bound there
    graph.constants["embedding.weight"] = dataclasses.replace(tensor, data=layout.pack(plane, 4).reshape(-1))
    native, reference = both(graph)
    assert outside.any() and not np.array_equal(native, before)
    np.testing.assert_array_equal(native, reference)


def test_the_padding_of_products_is_not_read(graph):
    name = f"{QKV}.weight"
    before, tensor = both(graph)[0], graph.constants[name]
    rows, columns = (layout.padded(size, 16) for size in (40, HIDDEN))
    plane = np.full((rows, columns), -8)
    plane[:40, :HIDDEN] = layout.unpack(tensor.data, 40, HIDDEN, 4)
    graph.constants[name] = dataclasses.replace(tensor, data=layout.pack(plane, 4).reshape(-1))
    for found in both(graph):
        np.testing.assert_array_equal(found, before)


def test_a_stream_that_is_read_before_its_sum_is_not_added_to_too_early(graph):
    """out → Norm(stream) → gate → Add(stream, out): the product may not yet write into the stream."""
    out, add = (graph.nodes[at(graph, f"layers.0.attention.{name}")] for name in ("out", "add"))
    graph.nodes.remove(add)
    reads(graph, "layers.0.mlp.norm", 0, "embedding")
    graph.nodes.insert(at(graph, "layers.0.mlp.gate_up") + 1, add)
    check(graph)
    assert at(graph, out.name) < at(graph, "layers.0.mlp.norm") < at(graph, add.name)
    np.testing.assert_array_equal(*both(graph))


def test_a_norm_of_attention_sees_nothing_beyond_its_columns(graph):
    width = 24
    graph.constants["more.weight"] = Tensor.of(np.ones(width, np.float32))
    index = at(graph, "layers.0.attention.out")
    graph.nodes.insert(index, Node("Norm", (ATTEND, "more.weight"), ("more",), {"epsilon": 1e-5}, "more"))
    reads(graph, "layers.0.attention.out", 0, "more")
    np.testing.assert_array_equal(*both(graph))


@pytest.mark.parametrize("backend_class", [NativeBackend, NumpyBackend])
def test_float_graphs_are_left_to_onnxruntime(graph, backend_class):
    matrix = np.ones((VOCABULARY, HIDDEN), np.float32)
    graph.constants["table"] = Tensor.of(matrix)
    graph.nodes[at(graph, "embedding")] = Node(
        "Embedding", ("input_ids", "table"), ("embedding",), {}, "embedding"
    )
    check(graph)
    with pytest.raises(FormatError, match=r"'embedding' \(Embedding\).*--backend ort"):
        backend_class(SimpleNamespace(graph=graph))


@pytest.mark.parametrize("backend_class", [NativeBackend, NumpyBackend])
@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_a_token_that_is_no_row_is_refused(graph, backend_class, token):
    with pytest.raises(BackendError, match=f"0 … {VOCABULARY - 1}, got {token}"):
        backend_class(SimpleNamespace(graph=graph)).forward(np.array([token]))


def test_a_node_that_only_is_named_as_a_low_plane_leaves_no_model(graph):
    change(graph, QKV, name=f"{QKV}.low")
    check(graph)
    with pytest.raises(FormatError, match="comes from no earlier node"):
        high_plane(graph)


def test_layers_may_have_caches_of_different_shapes():
    graph = quantized_graph()
    other_heads(graph)
    check_graph(graph)
    check_values(graph)
    assert [cache.shape for cache in caches_of(graph)] == [(2, None, 4)] * 2 + [(1, None, 4)] * 2
    artifact, ids = SimpleNamespace(graph=graph), np.arange(20)
    expected = NumpyBackend(artifact).forward(ids, 20)
    backend = NativeBackend(artifact, threads=2)
    assert np.array_equal(backend.forward(ids, 20).view(np.int32), expected.view(np.int32))
    backend.close()
