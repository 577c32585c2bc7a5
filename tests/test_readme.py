"""README.md and docs/ against the program: the README's commands run in order, those of the pages parse."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shlex
from pathlib import Path

import pytest

from flatlm.export import sources
from flatlm.export.recipe import RECIPES
from flatlm.runtime.cli import VERBS, main, parser_of
from tests.tiny_models import tiny_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
MADE_UP = "adding.md"  # its examples are of what a reader adds
NAME = "smollm2-135m-instruct"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    """The lines of its shell blocks, without comments."""
    lines = "\n".join(blocks(text, "sh")).replace("\\\n", "").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip()]


SHOWN = sorted(
    {
        line
        for text in (README, *(page for name, page in PAGES.items() if name != MADE_UP))
        for line in commands(text)
        if line.startswith("flatlm ")
    }
)


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_that_is_shown_parses(command):
    verb, *rest = shlex.split(command)[1:]
    if VERBS[verb][2]:
        pytest.importorskip({"export": "onnx", "serve": "starlette"}[VERBS[verb][2]])
    assert callable(parser_of(verb).parse_args(rest).run)


@pytest.fixture
def tiny(tmp_path, monkeypatch, models_folder):
    """An empty folder to work in; what would be fetched by the name of the README is a tiny model."""
    source = tiny_model(tmp_path / "source", context_length=512)
    opened = sources.open_source
    monkeypatch.setattr(
        sources, "open_source", lambda word, progress=None: opened(str(source) if word == NAME else word)
    )
    monkeypatch.setitem(RECIPES, "edge", dataclasses.replace(RECIPES["edge"], windows=2, alphas=(0.5,)))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return models_folder


def run_python(page: str) -> None:
    for block in blocks(page, "python"):
        exec(compile(block, "block", "exec"), {})


def test_the_readme_from_top_to_bottom(tiny, monkeypatch, capsys):
    for command in commands(README):
        program, *rest = shlex.split(command)
        if program == "flatlm":
            monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
            assert main(rest) == 0, (command, capsys.readouterr().err)
        elif program.startswith("scripts/"):
            assert os.access(ROOT / program, os.X_OK), program
        else:
            assert command == "pip install '.[export,serve]'"
    run_python(README)
    assert [path.name for path in tiny.iterdir() if not path.name.startswith(".")] == [NAME]


def test_the_readme_keeps_its_two_commands_and_its_length():
    assert {"scripts/demo", "scripts/check"} <= set(commands(README))
    assert len(README.encode()) < 9000


LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
                                  *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"],
                         ids=lambda path: path.name)  # fmt: skip
def test_links_lead_somewhere(path):
    for target, _ in LINK.findall(path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_wheels_metadata_has_addresses_below_one_home():
    pytest.importorskip("hatchling")
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    metadata = ProjectMetadata(str(ROOT), PluginManager())
    from scripts.make_site import home

    assert metadata.core.urls["Homepage"] == home()
    assert all(address.startswith(home()) for address in metadata.core.urls.values())


def test_links_hold_on_the_site():
    from scripts.make_site import home, page

    assert "](results.md)" in page(ROOT / "README.md")
    assert f"]({home()}/CONTRIBUTING.md)" in page(ROOT / "README.md")
    assert f"]({home()}/export/data/README.md)" in page(ROOT / "README.md")
    assert "](../images/" not in page(ROOT / "docs" / "results.md")
