"""Shell completion, made from the parsers: every verb and flag is in it, and shells take it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from flatlm.runtime.cli import VERBS, main
from flatlm.runtime.commands.completion import SHELLS, verbs

KNOWN = verbs()


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_and_flag_is_known(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)
    spelled = script.replace("-l ", "--").replace("-o ", "-").replace("-s ", "-")
    assert all(name in spelled for verb in KNOWN.values() for flag in verb.flags for name in flag.names[-1:])


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_takes_the_script(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(SHELLS[shell](KNOWN))
    done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["comp"], {"compare", "completion"}),
        (["generate", "--backend", "n"], {"native", "numpy"}),
        (["bench", "-o", "j"], {"json", "jsonl"}),
        (["generate", "--top-"], {"--top-k", "--top-p"}),
        (["chat", "smo"], {"smollm"}),
    ],
)
def test_bash_completes(words, expected, tmp_path, models_folder):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    (models_folder / "smollm").mkdir(parents=True)
    (tmp_path / "script").write_text(SHELLS["bash"](KNOWN))
    asked = f"source ./script; COMP_WORDS=(flatlm {' '.join(words)}); COMP_CWORD={len(words)}; _flatlm"
    done = subprocess.run(
        [bash, "-c", asked + '; printf "%s\\n" "${COMPREPLY[@]}"'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert set(done.stdout.split()) == expected, done.stderr
