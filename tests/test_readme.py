"""README.md against the program: the commands shown are ones that parse."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from flatlm.runtime.cli import VERBS, Parser, _load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

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
