"""Experts on their way to integers: folds leave the function, each expert is rounded on its own rows."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.export import execute, ops
from flatlm.export.experts import Reads, all_in_one, matrix_of
from flatlm.export.passes import smooth
from flatlm.export.quantize import quantize
from flatlm.export.quick import quick
from flatlm.export.recipe import RECIPES, Recipe
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.format.functions import check_graph
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.format.widths import check_values
from tests.float_experts import EXPERTS, KEPT, WIDE, float_experts
from tests.test_passes import HIDDEN, random_tokens

TOKENS = random_tokens(640)


def quantized(recipe: Recipe, graph: Graph):
    recipe = replace(recipe, windows=4 if recipe.windows else 0)
    if not recipe.windows:
        return quick(graph, recipe, lambda done, total: None)
    return quantize(graph, recipe, TOKENS)


# ---------------------------------------------------------------------------------------------------- folds
def test_a_norm_carries_the_smoothing_of_router_and_experts_alike():
    graph = float_experts()
    block = graph.blocks[1]
    folds = {fold.linear.name: fold for fold in smooth.folds(Graph(block, graph.constants))}
    fold = folds["layers.0.mlp.experts.gate_up"]
    assert (fold.source.name, fold.by_expert) == ("layers.0.mlp.norm", False)
    assert [node.name for node in fold.others] == ["layers.0.mlp.router"]
    ids = random_tokens(20).reshape(2, 10)
    before = execute.logits(graph, ids)
    smooth.apply(graph, fold, np.geomspace(0.25, 4, HIDDEN).astype(np.float32))
    np.testing.assert_allclose(execute.logits(graph, ids), before, atol=2e-3)


def test_each_expert_has_a_smoothing_of_its_own_before_its_down_weights():
    graph = float_experts()
    fold = next(fold for fold in smooth.folds(graph) if fold.linear.name == "layers.1.mlp.experts.down")
    assert fold.by_expert and not fold.gated and fold.source.name == "layers.1.mlp.experts.gate_up"
    ids = random_tokens(20).reshape(2, 10)
    before, weight = execute.logits(graph, ids), graph.array(fold.linear.inputs[1])
    s = np.random.default_rng(0).uniform(0.25, 4, (EXPERTS, WIDE)).astype(np.float32)
    smooth.apply(graph, fold, s)
    np.testing.assert_allclose(execute.logits(graph, ids), before, atol=2e-3)
    np.testing.assert_allclose(graph.array(fold.linear.inputs[1]), weight * s[:, None], rtol=1e-6)


# ---------------------------------------------------------------------------------------------- rows of each
def test_what_experts_read_is_told_apart():
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((2, 7, 3)).astype(np.float32) for _ in range(3)]
    choice = [np.argsort(rng.random((2, 7, EXPERTS)))[..., :KEPT] for _ in range(3)]
    reads = Reads(tuple(x), tuple(choice), EXPERTS)
    assert reads.counts.sum() == 3 * 2 * 7 * KEPT
    for e in range(EXPERTS):
        wanted = [x[i][b, t] for i in range(3) for b in range(2) for t in range(7) if e in choice[i][b, t]]
        assert np.array_equal(reads.rows(e), np.array(wanted))
        assert len(reads.rows(e)) == reads.counts[e]
        assert len(reads.rows(e, 2)) >= min(2, len(wanted))
    assert np.array_equal(reads.of_most(), reads.rows(int(reads.counts.argmax())))


def test_rows_of_their_own_are_divided_by_what_their_expert_has():
    rng = np.random.default_rng(1)
    choice = np.argsort(rng.random((2, 7, EXPERTS)))[..., :KEPT]
    x = rng.standard_normal((2, 7, KEPT, 3)).astype(np.float32)
    s = rng.uniform(1, 2, (EXPERTS, 3)).astype(np.float32)
    reads = Reads((x,), (choice,), EXPERTS)
    for e in range(EXPERTS):
        assert np.array_equal(reads.divided(s).rows(e), reads.rows(e) / s[e])
    assert np.array_equal(reads.divided(s[0]).values[0], x / s[0])


def test_an_expert_is_a_matrix_and_all_are_one():
    graph = float_experts()
    node = ops.expert_layers(graph.nodes)[1]
    recipe = RECIPES["paper"]
    one, whole = matrix_of(node, graph, recipe, 3), all_in_one(node, graph, recipe)
    assert np.array_equal(one.weight, graph.array(node.inputs[1])[3])
    assert np.array_equal(whole.weight.reshape(EXPERTS, *one.weight.shape)[3], one.weight)
    assert one.recipe.activations == "token"
    up = ops.expert_layers(graph.nodes)[0]
    assert matrix_of(up, graph, recipe, 0).parts == [slice(0, WIDE), slice(WIDE, 2 * WIDE)]
    assert all_in_one(up, graph, recipe).parts == [slice(0, 2 * WIDE * EXPERTS)]


# --------------------------------------------------------------------------------------------- whole exports
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_quantizes_experts_and_kernels_agree(recipe):
    graph, report = quantized(recipe, float_experts())
    check_graph(graph)
    check_values(graph)
    artifact, ids = SimpleNamespace(graph=graph), random_tokens(40, 1)
    expected = NumpyBackend(artifact).forward(ids, 40)
    backend = NativeBackend(artifact, threads=2)
    assert np.array_equal(backend.forward(ids, 40).view(np.int32), expected.view(np.int32))
    backend.close()
    experts = [layer for layer in report.layers if layer.experts]
    assert [layer.experts for layer in experts] == [EXPERTS] * 4
    assert {layer.rows for layer in experts} == {EXPERTS * 2 * WIDE, EXPERTS * HIDDEN}
    routers = [node for node in graph.nodes if node.name.endswith(".router")]
    assert {graph.bits(node.inputs[1]) for node in routers} == {8}


def test_eight_bits_keep_what_experts_say():
    floats = float_experts()
    graph, report = quantized(RECIPES["w8a8"], floats)
    scores = execute.evaluate(graph, random_tokens(60, 5).reshape(2, 30), reference=floats)
    assert scores.kl is not None and scores.kl < 0.3
    assert all(layer.error is not None and layer.error < 1e-3 for layer in report.layers if layer.experts)
    assert not any(layer.unreached for layer in report.layers)
    assert "experts were" not in report.table() and all("unreached" not in row for row in report.rows())


def test_experts_that_no_token_reached_are_named_and_rounded_to_the_nearest():
    floats = float_experts(unreached=2)
    graph, report = quantized(replace(RECIPES["w8a8"], skip=("smooth",)), floats)
    told = {layer.name: layer.unreached for layer in report.layers if layer.unreached}
    assert told == {
        f"layers.{i}.mlp.experts.{part}": (3, 4) for i in range(2) for part in ("gate_up", "down")
    }
    assert "to 2 of 5 experts (3, 4) no calibration token went" in report.table()
    assert [row["unreached"] for row in report.rows() if row.get("experts")] == [(3, 4)] * 4
    node = next(node for node in graph.nodes if node.name == "layers.0.mlp.experts.down")
    from flatlm.runtime.ops.flat_experts import totals

    weight, steps = floats.array("layers.0.mlp.experts.down.weight"), graph.array(node.inputs[3])
    for e in (3, 4):
        assert np.array_equal(totals(graph, node, e), np.rint(weight[e] / steps[e][:, None]))
    assert any((totals(graph, node, e) != np.rint(weight[e] / steps[e][:, None])).any() for e in range(3))


def test_bits_of_experts_are_weighed_with_those_of_other_layers():
    recipe = replace(RECIPES["edge"], max_kl=0.3)
    _, report = quantized(recipe, float_experts())
    priced = [layer for layer in report.body if layer.kl is not None]
    assert {layer.name.rpartition(".")[2] for layer in priced} == {"qkv", "out", "gate_up", "down"}
    assert {layer.bits for layer in priced} == {4, 8}


def test_a_shared_expert_is_smoothed_with_the_others():
    graph = float_experts()
    normed = "layers.0.mlp.norm"
    shared = Node("Linear", (normed, "shared.weight", "shared.bias"), ("shared",), {}, "layers.0.mlp.shared")
    rng = np.random.default_rng(0)
    constants = {"shared.weight": rng.standard_normal((8, HIDDEN)), "shared.bias": np.zeros(8)}
    graph.constants |= {name: Tensor.of(array.astype(np.float32)) for name, array in constants.items()}
    at = next(i for i, node in enumerate(graph.nodes) if node.name == "layers.0.mlp.router")
    graph.nodes.insert(at, shared)
    fold = next(fold for fold in smooth.folds(graph) if fold.linear.name.endswith("0.mlp.experts.gate_up"))
    assert {node.name for node in fold.others} == {"layers.0.mlp.router", "layers.0.mlp.shared"}
