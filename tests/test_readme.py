"""README.md against the program: the commands shown are ones that parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from flatlm.runtime.cli import VERBS, parser_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
SHOWN = sorted(set(re.findall(r"^(flatlm [^#\n]+)", SHELL, re.MULTILINE)))


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_of_the_readme_parses(command):
    verb, *rest = shlex.split(command)[1:]
    if VERBS[verb][2]:
        pytest.importorskip("onnx")
    assert callable(parser_of(verb).parse_args(rest).run)
