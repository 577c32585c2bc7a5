"""`flatlm models`, and the table of docs/export.md that is made of it."""

from __future__ import annotations

import json

from flatlm.export.archs import architectures
from flatlm.export.model_types import model_types
from flatlm.runtime import cli
from scripts import make_models


def test_every_model_type_says_what_models_it_is_for_and_what_is_peculiar_to_them():
    types = model_types()
    assert [one.model_type for one in types] == architectures()
    assert not [one for one in types if not one.models or not one.shape]


def test_the_table_of_the_page_is_that_of_the_code():
    text = make_models.PAGE.read_text(encoding="utf-8")
    assert make_models.page(text) == text, "run scripts/make_models.py"


def test_models_are_listed_on_stdout(capsys):
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-len(architectures()) :]] == architectures()
    assert any(line.startswith("qwen2 ") and "(tried: Qwen2.5-Coder" in line for line in lines)


def test_models_in_json_have_their_names_in_gguf_files(capsys):
    assert cli.main(["models", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    by_name = {one["model_type"]: one for one in told["models"]}
    assert by_name["olmo3"]["gguf"] == ["olmo2"] and by_name["gemma3_text"]["gguf"] == ["gemma3"]
    assert "transformers" in told["tested"]
