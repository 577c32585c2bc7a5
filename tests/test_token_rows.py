"""Tokens that the model has no rows for: refused where something writes them or waits for them."""

from __future__ import annotations

import json

import pytest

from flatlm.export.token_rows import require_rows
from flatlm.runtime.errors import SourceError
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.tiny_models import tiny_model

ROWS = 301
PAD = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def tokenizer(folder, begins=False, **generation):
    """A tiny model's tokenizer with one token more than the model has rows; it may begin every text."""
    path = tiny_model(folder) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append({"id": ROWS, "content": "<|pad|>", **PAD})
    if begins:
        pad, text = {"SpecialToken": {"id": "<|pad|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        token = {"id": "<|pad|>", "ids": [ROWS], "tokens": ["<|pad|>"]}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [pad, text],
            "pair": [pad, text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|pad|>": token},
        }
    path.write_text(json.dumps(content))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<|pad|>"}))
    return load_tokenizer(folder)


def test_a_token_without_a_row_is_no_obstacle_where_nothing_writes_it(tmp_path):
    loaded = tokenizer(tmp_path)
    assert loaded.encode("<|pad|>") == [ROWS]
    require_rows(loaded, "{{ messages }}{{ eos_token }}", [0, 300], ROWS)
    require_rows(loaded, None, [], ROWS)


@pytest.mark.parametrize(
    ("template", "text", "begins", "generation", "message"),
    [
        ("<|pad|>{{ messages }}", [], False, {}, "the chat template writes the token 301, '<|pad|>'"),
        ("{{ pad_token }}", [], False, {}, "the chat template writes the token 301, '<|pad|>'"),
        (None, [5, 301], False, {}, "the calibration text gives the token 301, '<|pad|>'"),
        (None, [], True, {}, "tokenizer.json adds to every text the token 301, '<|pad|>'"),
        (
            None,
            [],
            False,
            {"eos_token_id": [2, 5000]},
            "ends answers with the token 5000, which the tokenizer",
        ),
        (None, [], False, {"eos_token_id": 301}, "ends answers with the token 301, '<|pad|>'"),
    ],
)
def test_a_token_without_a_row_is_named_with_the_models_rows(
    tmp_path, template, text, begins, generation, message
):
    with pytest.raises(SourceError) as error:
        require_rows(tokenizer(tmp_path, begins, **generation), template, text, ROWS)
    assert message in str(error.value) and "the model has 301 rows (0 to 300)" in str(error.value)
