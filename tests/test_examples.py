"""The programs of examples/ run, with a tiny model in the place of a real one."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest

from flatlm.export import exporter
from flatlm.export.recipe import RECIPES
from flatlm.export.sources import open_source
from tests.tiny_models import tiny_model

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    source = open_source(str(tiny_model(folder / "source", context_length=512)))
    recipe = RECIPES["quick"]
    return str(
        exporter.export(source, folder / "tiny", recipe, tell=lambda stage: lambda done, total: None).path
    )


def program(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_of_them_are_told_of_and_no_others():
    told = (EXAMPLES / "README.md").read_text()
    assert all(f"[{path.name}]" in told for path in EXAMPLES.glob("*.py"))
    assert len(list(EXAMPLES.glob("*.py"))) == 5


def test_ask(model, capsys):
    program("ask").main(model, "Why?")
    assert "tokens per second)" in capsys.readouterr().out


def test_a_conversation_forgets_its_oldest_turns(model, capsys):
    conversation = program("conversation")
    conversation.ROOM = 100
    conversation.main(model, ["one " * 20, "two " * 20, "three " * 20])
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_side_by_side(model, capsys):
    program("side_by_side").main(model, "one", "two", "three")
    out = capsys.readouterr().out
    assert all(f"{question}\n  " in out for question in ("one", "two", "three"))


def test_drafting_gives_the_same_text(model, capsys):
    program("drafting").main(model, "one two one two")
    assert capsys.readouterr().out.splitlines()[-1] == "the same text"


def test_an_event_loop_may_end_an_answer(model, capsys):
    asyncio.run(program("event_loop").main(model, "Tell me a long story.", 0.2))
    assert " tokens)" in capsys.readouterr().out
