"""Which nodes become records together, and that what fits no pattern computes the same by itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.kernels_arm import ops as machine
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.errors import FormatError
from flatlm.runtime.format.functions import check_graph
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.widths import check_values
from flatlm.runtime.fuse import fuse
from tests.tiny_graphs import CONTEXT, HIDDEN, INTERMEDIATE, VOCABULARY, quantized_graph

ATTENTION, MLP = "layers.0.attention", "layers.0.mlp"


def at(graph: Graph, name: str) -> int:
    return next(i for i, node in enumerate(graph.nodes) if node.name == name)


def reads(graph: Graph, name: str, which: int, value: str) -> None:
    """Input number `which` of a node becomes `value`."""
    node = graph.nodes[at(graph, name)]
    inputs = tuple(value if i == which else old for i, old in enumerate(node.inputs))
    graph.nodes[at(graph, name)] = replace(node, inputs=inputs)


def norm_after(graph: Graph, name: str, columns: int = HIDDEN) -> str:
    """A new norm of what the node `name` computes, with a weight of its own."""
    norm = f"{name}.norm"
    weight = np.random.default_rng(columns).random(columns, np.float32) + 0.5
    graph.constants[f"{norm}.weight"] = Tensor.of(weight)
    inputs = graph.nodes[at(graph, name)].outputs[0], f"{norm}.weight"
    graph.nodes.insert(at(graph, name) + 1, Node("Norm", inputs, (norm,), {"epsilon": 1e-5}, norm))
    return norm


def post_norms(graph: Graph) -> None:
    """Gemma: what a block computes is normed before it is added."""
    for block in (f"{ATTENTION}.out", f"{MLP}.down", "layers.1.attention.out"):
        reads(graph, block.rpartition(".")[0] + ".add", 1, norm_after(graph, block))


def one_norm(graph: Graph) -> None:
    """GPT-NeoX: attention and MLP read one norm, and both are added to what it norms."""
    reads(graph, f"{MLP}.gate_up", 0, f"{ATTENTION}.norm")
    graph.nodes.pop(at(graph, f"{MLP}.norm"))


def embedding_norm(graph: Graph) -> None:
    """The first residual stream is a norm of the embedding."""
    norm = norm_after(graph, "embedding")
    reads(graph, f"{ATTENTION}.norm", 0, norm)
    reads(graph, f"{ATTENTION}.add", 0, norm)


def gate_norm(graph: Graph) -> None:
    """A norm between activation and product."""
    reads(graph, f"{MLP}.down", 0, norm_after(graph, f"{MLP}.act", INTERMEDIATE))


def attention_norm(graph: Graph) -> None:
    """A norm between attention and product: no zeros need stand beyond attention's columns."""
    reads(graph, f"{ATTENTION}.out", 0, norm_after(graph, f"{ATTENTION}.attend", 24))


def other_queries(graph: Graph) -> None:
    """The queries are turned once more."""
    node = graph.nodes[at(graph, f"{ATTENTION}.rotate_q")]
    again = replace(node, inputs=(node.outputs[0], *node.inputs[1:]), outputs=("again",), name="again")
    graph.nodes.insert(at(graph, node.name) + 1, again)
    reads(graph, f"{ATTENTION}.attend", 0, "again")


def plain_keys(graph: Graph) -> None:
    """Keys without a rotation."""
    reads(graph, f"{ATTENTION}.append", 0, f"{ATTENTION}.heads.k")
    graph.nodes.pop(at(graph, f"{ATTENTION}.rotate_k"))


def two_readers(graph: Graph) -> None:
    """What a norm reads is read once more: nobody may write over it."""
    norm = norm_after(graph, f"{ATTENTION}.out")
    reads(graph, f"{MLP}.add", 1, f"{ATTENTION}.out")
    graph.nodes = [n for n in graph.nodes if not n.name.startswith(f"{MLP}.") or n.name == f"{MLP}.add"]
    reads(graph, f"{ATTENTION}.add", 1, norm)


def late_sum(graph: Graph) -> None:
    """The stream is read between a product and the sum of the two."""
    add = graph.nodes.pop(at(graph, f"{ATTENTION}.add"))
    reads(graph, f"{MLP}.norm", 0, "embedding")
    graph.nodes.insert(at(graph, f"{MLP}.gate_up") + 1, add)


EDITS = {  # → how many records of their own there are
    post_norms: {"norm": 3},  # each adds to the stream
    one_norm: {"add": 1},
    embedding_norm: {"norm": 1},
    gate_norm: {"gate": 1},
    attention_norm: {"norm": 1},
    late_sum: {"add": 1},
    other_queries: {"rotate": 1},
    plain_keys: {"rotate": 1},
    two_readers: {"norm": 1, "add": 2},
}
CUTS = [[24], [1] * 24, [5, 19], [17, 7]]


def edited(edit, *model: str) -> Graph:
    graph = quantized_graph(1, *model)
    edit(graph)
    check_graph(graph)
    check_values(graph)
    return graph


@pytest.mark.parametrize("model", [("float32", "static"), ("int8", "token")], ids="-".join)
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_what_fits_no_pattern_runs_by_itself_and_gives_numpys_bits(edit, model):
    artifact = SimpleNamespace(graph=edited(edit, *model))
    ids = np.random.default_rng(2).integers(0, VOCABULARY, CONTEXT)
    expected = NumpyBackend(artifact).forward(ids, CONTEXT)
    for threads in (1, 2):
        backend = NativeBackend(artifact, threads=threads)
        names = {**machine.NAMES, machine.ROTATE: "append", machine.ROTATE8: "append"}
        codes = Counter(names[code] for code in backend.plan.ops[:, 0])
        assert {name: codes[name] for name in ("norm", "gate", "add", "rotate") if codes[name]} == EDITS[edit]
        for cut in CUTS:
            backend.truncate(0)
            parts = np.split(ids, np.cumsum(cut)[:-1])
            found = np.concatenate([backend.forward(part, len(part)) for part in parts])
            np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))
        backend.close()


def told(graph: Graph) -> list[str]:
    """The groups, with names within their layer."""
    short = [
        [node.name.rpartition(".")[2] for node in (*g.before, g.node, *([g.add] if g.add else []))]
        for g in fuse(graph)
    ]
    return [" + ".join(names) for names in short]


def test_a_layer_is_six_groups():
    layer = [
        "norm + qkv",
        "heads",
        "rotate_q + rotate_k + append + attend",
        "out + add",
        "norm + gate_up",
        "act + down + add",
    ]
    assert told(quantized_graph()) == ["rotary", "embedding", *layer, *layer, "norm + head"]


def test_a_norm_of_two_products_is_in_the_group_of_each():
    groups = told(edited(one_norm))
    assert "norm + qkv" in groups
    assert "norm + gate_up" in groups
    assert "norm" not in groups


def test_buffers_of_one_layer_serve_the_next():
    backend = NativeBackend(SimpleNamespace(graph=quantized_graph()), threads=1)
    table, names = backend.plan.ops, backend.plan.names
    writes = {}
    for name, row in zip(names, table, strict=True):
        if row[0] == machine.PRODUCT:
            writes[name] = row[machine.P_OUT]
    backend.close()
    for product in ("attention.qkv", "mlp.gate_up"):
        assert writes[f"layers.0.{product}"] == writes[f"layers.1.{product}"]


def swapped_halves(graph: Graph) -> None:
    """Keys as values and values as keys."""
    reads(graph, f"{ATTENTION}.attend", 1, "present.0.value")
    reads(graph, f"{ATTENTION}.attend", 2, "present.0.key")


def exchanged_values(graph: Graph) -> None:
    """Two layers' products stand side by side, and each attends with the other's values."""
    graph.nodes.pop(at(graph, "layers.1.attention.norm"))
    reads(graph, "layers.1.attention.qkv", 0, f"{ATTENTION}.norm")
    later = [graph.nodes.pop(at(graph, f"layers.1.attention.{name}")) for name in ("qkv", "heads")]
    here = at(graph, f"{ATTENTION}.heads") + 1
    graph.nodes[here:here] = later
    for layer in (0, 1):
        reads(graph, f"layers.{layer}.attention.append", 1, f"layers.{1 - layer}.attention.heads.v")


@pytest.mark.parametrize("edit", [swapped_halves, exchanged_values])
def test_attention_that_no_kernel_knows_is_refused_by_name(edit):
    artifact = SimpleNamespace(graph=edited(edit))
    assert np.isfinite(NumpyBackend(artifact).forward(np.arange(5), 5)).all()
    with pytest.raises(FormatError, match=f"'{ATTENTION}.*has no kernel, use --backend numpy"):
        NativeBackend(artifact, threads=1)
