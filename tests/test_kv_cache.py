"""An int8 K/V cache in export: ranges move from keys to queries, nodes change their state."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.export import execute
from flatlm.export.passes import keys
from flatlm.export.quantize import quantize
from flatlm.export.recipe import RECIPES
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.format.functions import check_graph
from flatlm.runtime.format.graph import Graph, Node
from tests.test_passes import GROUPS, HEADS, LAYERS, SIZE, VOCABULARY, float_graph, random_tokens


def states(graph: Graph) -> set[tuple]:
    """Functions that write or read a cache, each with the state it is in."""
    return {(node.op, node.attrs["state"]) for node in graph.nodes if "state" in node.attrs}


def test_ranges_moved_from_keys_to_queries_change_no_integer_and_no_score():
    recipe = dataclasses.replace(RECIPES["naive8"], kv="float32")
    graph, _ = quantize(float_graph(), recipe, random_tokens(256))
    ids = random_tokens(20, seed=1)
    before = execute.logits(graph, ids[None])
    old = dict(graph.constants)
    for meeting in keys.meetings(graph.nodes):
        keys.apply(graph, meeting, 2.0 ** np.random.default_rng(2).integers(-3, 4, (GROUPS, SIZE // 2)))
    changed = {name for name in old if old[name] is not graph.constants[name]}
    assert changed == {
        f"layers.{i}.attention.qkv.{part}" for i in range(LAYERS) for part in ("scale", "bias")
    }
    np.testing.assert_array_equal(execute.logits(graph, ids[None]), before)  # powers of two round nowhere


def test_a_key_channel_far_larger_than_the_others_shares_its_range_with_the_queries():
    q, k = (np.ones((1, heads, 3, SIZE), np.float32) for heads in (HEADS, GROUPS))
    k[:, 0, :, 1] = 100  # of the first key head, in pair 1
    s = keys.scales(keys.reach(q, k))
    np.testing.assert_allclose(s, [[10**-0.5, 10**0.5], [1, 1]], rtol=1e-6)


@pytest.mark.parametrize("name", ["rotate_k", "rotate_q"])
def test_keys_that_do_not_meet_the_queries_in_rotated_pairs_are_left_alone(name):
    nodes, meet = float_graph().nodes, [f"layers.{i}.attention.attend" for i in range(LAYERS)]
    assert [one.name for one in keys.meetings(nodes)] == meet
    at = next(i for i, node in enumerate(nodes) if node.name == f"layers.0.attention.{name}")
    nodes[at] = Node("Add", (nodes[at].inputs[0], "more"), nodes[at].outputs, {}, nodes[at].name)
    assert [one.name for one in keys.meetings(nodes)] == meet[1:]


def test_an_int8_cache_has_scales_among_the_inputs_and_outputs():
    graph, _ = quantize(
        float_graph(), dataclasses.replace(RECIPES["naive8"], kv="int8"), np.arange(40) % VOCABULARY
    )
    check_graph(graph)
    cached = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "key_scale", "value", "value_scale")]
    assert graph.inputs[2:] == [f"past_key_values.{name}" for name in cached]
    assert states(graph) == {("Append", "int8"), ("Attend", "int8")}


def test_float_execution_of_an_int8_cache_is_near_the_reference():
    graph, _ = quantize(float_graph(), dataclasses.replace(RECIPES["edge"], windows=4), random_tokens(2048))
    ids = random_tokens(20, seed=1)
    exact, near = (
        NumpyBackend(SimpleNamespace(graph=graph)).forward(ids, 20),
        execute.logits(graph, ids[None])[0],
    )
    assert np.linalg.norm(near - exact) < 0.1 * np.linalg.norm(exact)


def test_a_float_cache_stays_as_it_was():
    graph, _ = quantize(
        float_graph(), dataclasses.replace(RECIPES["naive8"], kv="float32"), np.arange(40) % VOCABULARY
    )
    assert states(graph) == {("Append", "float32"), ("Attend", "float32")}
