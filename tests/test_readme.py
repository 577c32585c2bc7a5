"""README.md against the program: the file map has every file, and the commands shown are ones that parse."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from runtime.cli import VERBS, Parser, _load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EMPTY = re.compile(r'\s*("{3}.*"{3})?\s*', re.DOTALL)  # a file that is at most a docstring


def mapped() -> set[str]:
    """Paths of the README's file map: folders end in / and the files of one are indented under it."""
    paths, folder = set(), ""
    block = README.partition("## File map")[2].split("```")[1]
    for line in block.strip().splitlines():
        name = line.split()[0]
        if name.endswith("/"):
            folder = name
        else:
            paths.add(folder + name if line.startswith(" ") else name)
    return paths


def test_the_file_map_names_every_file_and_no_other():
    found = {
        str(path.relative_to(ROOT))
        for folder in ("kernels_arm", "runtime", "export", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if not EMPTY.fullmatch(path.read_text(encoding="utf-8"))
    }
    scripts = (path for path in (ROOT / "scripts").rglob("*") if path.is_file() and path.suffix != ".pyc")
    found |= {str(path.relative_to(ROOT)) for path in scripts}
    found |= {path for path in (".ci/run", "hatch_build.py") if (ROOT / path).exists()}
    assert mapped() == found


SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
SHOWN = sorted(set(re.findall(r"^(flatlm [^#\n]+)", SHELL, re.MULTILINE)))


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_of_the_readme_parses(command):
    verb, *rest = shlex.split(command)[1:]
    if VERBS[verb][2]:
        pytest.importorskip("onnx")
    parser = Parser(prog="flatlm", allow_abbrev=False)
    subparsers: argparse._SubParsersAction = parser.add_subparsers(dest="verb")
    _load(verb)(subparsers)
    assert parser.parse_args([verb, *rest]).verb == verb
