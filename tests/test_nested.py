"""Nested weights: the file is an 8-bit model and a 4-bit one, and the second drafts for the first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.exporter import export
from export.passes.grid import planes
from export.recipe import RECIPES
from export.sources import open_source
from runtime.artifact import open_artifact
from runtime.errors import BackendError, UsageError
from runtime.llm import LLM
from runtime.nested import high_plane, is_low, layer_of
from tests.tiny_models import tiny_model


def exported(folder, name):
    source = tiny_model(folder / "tiny", architecture="qwen2", seed=3)
    recipe = replace(RECIPES[name], windows=2, alphas=(0.5,))
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
    with pytest.raises(UsageError, match="--nested"):
        LLM(exported(tmp_path, "w8a8"), draft="nested")
    with pytest.raises(BackendError, match="whole"):
        LLM(nested, backend="ort", draft="nested")
