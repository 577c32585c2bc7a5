"""Nested weights: the file is an 8-bit model and a 4-bit one, and the second drafts for the first."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.export.exporter import export
from flatlm.export.passes.grid import planes
from flatlm.export.recipe import RECIPES
from flatlm.export.sources import open_source
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.errors import BackendError, UsageError
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.format.graph import Tensor
from flatlm.runtime.format.nested import high_plane, is_low, layer_of
from flatlm.runtime.llm import LLM
from flatlm.runtime.ops import named
from tests.tiny_models import tiny_model


def exported(folder, name, **changes):
    source = tiny_model(folder / "tiny", architecture="qwen2", seed=3)
    recipe = replace(RECIPES[name], windows=2, alphas=(0.5,), **changes)
    return export(
        open_source(str(source)), folder / name, recipe, tell=lambda _: lambda done, total: None
    ).path


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("source"), "nested")


def test_the_model_inside_a_nested_one_is_its_high_plane(nested):
    whole = open_artifact(nested).graph
    inside = high_plane(whole)
    lows = [node for node in whole.nodes if is_low(node)]
    assert len(lows) == 4 * 2  # of two layers; the head has none
    assert len(inside.nodes) == len(whole.nodes) - 2 * len(lows)
    highs = {node.name: node for node in inside.nodes}
    for node in lows:
        high = highs[layer_of(node.name)]
        step, fine = (whole.array(one.inputs[2]) for one in (high, node))
        np.testing.assert_allclose(step, 16 * fine, rtol=1e-6)
        assert not whole.array(node.inputs[3]).any()  # the bias is with the high plane
    assert high_plane(inside) is inside


def test_the_planes_are_nibbles_of_the_weight():
    weight = np.arange(-1904, 1905, dtype=np.float32)
    high, low = planes(weight)
    assert np.array_equal(16 * high + low, weight)
    assert (low.min(), low.max(), high.min(), high.max()) == (-8, 7, -119, 119)


@pytest.mark.parametrize("draft", ["nested", "auto:nested", "cascade:nested,maxgram:3,2/4"])
def test_a_nested_model_drafts_for_itself(nested, draft):
    plain = LLM(nested, ctx=128).generate("once upon a time", n=40)
    drafted = LLM(nested, ctx=128, draft=draft).generate("once upon a time", n=40)
    assert drafted.tokens == plain.tokens
    if draft.startswith("cascade"):
        assert drafted.timings.drafting.accepted > 0


def test_who_has_no_model_inside_is_told(nested, tmp_path):
    with pytest.raises(UsageError, match="--recipe nested"):
        LLM(exported(tmp_path, "w8a8"), draft="nested")
    with pytest.raises(BackendError, match="runs files"):
        LLM(nested, backend="ort", draft="nested")


def test_both_planes_of_the_keys_are_balanced_for_an_int8_cache(nested, tmp_path):
    plain = open_artifact(nested).graph
    balanced = open_artifact(exported(tmp_path, "nested", kv="int8")).graph
    products = [node for node in plain.nodes if layer_of(node.name).endswith("qkv")]
    assert len(products) == 2 * 2
    moved = {}
    for node in products:
        scale, other = (graph.array(node.inputs[2]) for graph in (plain, balanced))
        moved.setdefault(layer_of(node.name), []).append(other / scale)
    for high, low in moved.values():
        assert np.abs(high - 1).max() > 0.01
        np.testing.assert_allclose(high, low, rtol=1e-5)


def test_planes_are_one_matrix_to_who_counts_parameters(nested, tmp_path):
    ours, theirs = (open_artifact(path).manifest for path in (nested, exported(tmp_path, "w8a8")))
    assert ours.parameters == theirs.parameters
    assert ours.bits_per_weight > theirs.bits_per_weight


def test_only_8_bit_weights_are_nested():
    with pytest.raises(UsageError, match="--weight-bits 8"):
        replace(RECIPES["edge"], nested=True)


def test_integers_are_made_once_for_both_planes_and_anew_where_they_differ(nested):
    graph = open_artifact(nested).graph
    kernels = NativeBackend(SimpleNamespace(graph=graph), threads=1, context=16)
    names = [one for one in kernels.plan.names if layer_of(one) == "layers.0.mlp.down"]
    kernels.close()
    assert names == ["layers.0.mlp.down", "layers.0.mlp.down", "layers.0.mlp.down.low"]  # integers, planes
    low = next(node for node in graph.nodes if node.name == "layers.0.mlp.down.low")
    own = {**graph.constants, "own": Tensor.of(graph.array(named(low)["limit"]).copy())}
    inputs = tuple("own" if name == named(low)["limit"] else name for name in low.inputs)
    nodes = [replace(node, inputs=inputs) if node is low else node for node in graph.nodes]
    kernels = NativeBackend(
        SimpleNamespace(graph=replace(graph, nodes=nodes, constants=own)), threads=1, context=16
    )
    names = [one for one in kernels.plan.names if layer_of(one) == "layers.0.mlp.down"]
    kernels.close()
    assert names == ["layers.0.mlp.down"] * 2 + ["layers.0.mlp.down.low"] * 2
