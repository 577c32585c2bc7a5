"""Checkpoints that also see or hear: their text half gives the graph that it gives alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatlm.export.archs import build_graph
from flatlm.export.sources import open_source
from flatlm.runtime.errors import UnsupportedError
from tests.tiny_checkpoints import tiny, tiny_config, tiny_weights
from tests.tiny_models import write_safetensors

# What stands before the text half's weights and before its head: of transformers 4 and 5, and of others.
PREFIXES = [
    ("language_model.model.", "language_model."),
    ("model.language_model.", ""),
    ("language_model.", ""),
    ("", ""),
]
EYES = {"vision_tower.patch.weight": (4, 3), "model.multi_modal_projector.linear.bias": (5,)}


def both_halves(folder: Path, kind: str, body: str, head: str, **text: Any) -> Path:
    """A checkpoint of `kind` as the text half of one that sees."""
    tiny(folder, kind, **text)
    config = tiny_config(kind, **text)
    half = {f"{body}{name.removeprefix('model.')}": w for name, w in tiny_weights(config).items()}
    if f"{body}lm_head.weight" in half:
        half[f"{head}lm_head.weight"] = half.pop(f"{body}lm_head.weight")
    eyes = {name: np.ones(shape, np.float32) for name, shape in EYES.items()}
    write_safetensors(folder / "model.safetensors", half | eyes)
    tied = config.pop("tie_word_embeddings")
    outer = {"model_type": "seeing", "text_config": config, "vision_config": {"hidden_size": 4}}
    (folder / "config.json").write_text(json.dumps(outer | {"tie_word_embeddings": tied}))
    return folder


@pytest.mark.parametrize(("body", "head"), PREFIXES)
@pytest.mark.parametrize("kind", ["ministral3", "gemma3_text"])
def test_the_text_half_gives_the_graph_that_it_gives_alone(tmp_path, kind, body, head):
    alone = build_graph(open_source(str(tiny(tmp_path / "alone", kind))))
    notes: list[str] = []
    graph = build_graph(open_source(str(both_halves(tmp_path / "both", kind, body, head))), notes)
    assert graph.nodes == alone.nodes and graph.metadata == alone.metadata
    for name in alone.constants:
        np.testing.assert_array_equal(graph.array(name), alone.array(name))
    left = "both: 2 weights of other parts are left out, first vision_tower.patch.weight"
    assert left in notes


def test_a_weight_that_no_list_names_is_refused(tmp_path):
    folder = both_halves(tmp_path, "llama", "language_model.model.", "language_model.")
    with pytest.raises(
        UnsupportedError, match=r"2 weights have no place .*, first vision_tower\.patch\.weight"
    ):
        build_graph(open_source(str(folder)))


def test_an_unknown_text_half_is_refused_by_its_own_name(tmp_path):
    folder = both_halves(tmp_path, "llama", "", "")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["model_type"] = "lama"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"architecture 'lama' is not supported; .* 'llama'"):
        build_graph(open_source(str(folder)))
