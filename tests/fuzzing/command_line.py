"""The target command line: words in any order, on a tiny artifact; exit statuses, and no traceback."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from hypothesis import strategies as st

from flatlm.runtime import cli
from flatlm.runtime.drafting import kept as kept_files
from tests.fuzzing.mutation import Draw, words
from tests.fuzzing.target import Case, Limits, Prepared, Target
from tests.test_nested import exported
from tests.test_settings import MAGIC, RECORD

STATUSES = (0, 1, 2, cli.INTERRUPTED)
ARGUMENTS = "arguments.json"
FLAGS = words("""
    -p -n -c -t -s -d -r -f -o --temp --top-k --top-p --min-p --stop --repeat-penalty --ctx --threads
    --seed --json --raw --help -h --backend --draft --draft-rule --device --prompt-style --re2 --reads
    --limit --samples --shots --file --out --tokens --reference --recipe --calibrate --frontier --batch
    --rows -m --bits-per-weight --max-kl --size --sigmas --kv --version --repeat-last-n --system
    --allow-code-execution --shots-file --show-prompt --predict --output -b --no-such
""")
MEASURES = ("gsm8k", "svamp", "aqua", "humaneval", "ppl", "kl")
WORDS = (
    *words("""
    model other empty file.txt run.jsonl broken.jsonl new.jsonl x - -- 0 1 2 3 -1 1.5 1e400 nan inf 1,2
    1,,2 , 0x10 1_0 true auto native numpy ort cuda maxgram off nested auto:nested
    cascade:maxgram,nested:3:2 cascade: cascade:x:y:z auto: auto:empty invariant rejection cot ps md
    json csv edge w8a8 %s {} hub:a = x=1
    """),
    *(
        "",
        "é🙂",
        "9" * 30,
        "٣",
        "a\nb",
        "\x1b[2J",
        "\udcff",
        "a b",
        "q" * 3000,
        *MEASURES,
    ),
)


@st.composite
def arguments(draw: Draw) -> list[str]:
    """A verb, most often with the model it wants, then flags and words; small numbers, so nothing is long."""
    verb = draw(st.sampled_from((*cli.VERBS, *cli.VERBS, "", "genrate", "help")))
    given = [verb, *(["--check"] if verb == "serve" else [])]  # it would listen till the end of days
    if draw(st.integers(0, 3)):
        given.append(
            "empty" if verb == "export" else draw(st.sampled_from(("model", "model", "other", "run.jsonl")))
        )
    if verb == "eval" and draw(st.integers(0, 3)):
        given.append(draw(st.sampled_from(MEASURES)))
    if verb == "compare" and draw(st.booleans()):
        given.append("run.jsonl")
    for _ in range(draw(st.integers(0, 5))):
        flag = draw(st.sampled_from(FLAGS))
        word = draw(st.one_of(st.sampled_from(WORDS), st.text("ab-=:,.0é", max_size=4)))
        given += [[flag, word], [flag], [word], [f"{flag}={word}"]][draw(st.integers(0, 3))]
    return given


def command_line(folder: Path) -> Prepared:
    """Runs in the folder, which holds a model, one that is damaged, runs and a text; there is no network."""
    exported(folder, "naive8").rename(folder / "model")
    (folder / "empty").mkdir()
    (folder / "other").mkdir()
    (folder / "other" / "flatlm.json").write_text("{}")
    (folder / "file.txt").write_text("A line.\n---\nAnother 🙂\n")
    run = MAGIC + b'{"task": "x"}}\n' + json.dumps(RECORD).encode() + b"\n"
    (folder / "run.jsonl").write_bytes(run)
    (folder / "broken.jsonl").write_bytes(run + b"{\n{}\n")
    for verb in cli.VERBS:  # once, here, and not in each child
        cli.parser_of(verb)
    importlib.import_module("flatlm.runtime.llm")
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def restore() -> None:
        for path in folder.iterdir():
            if path.is_file() and path not in kept:
                path.unlink()
        for path in (folder / "run.jsonl", folder / "broken.jsonl", folder / "file.txt"):
            path.write_bytes(kept[path])

    def run_case(case: Case) -> None:
        os.chdir(folder)
        os.environ["HF_HUB_OFFLINE"] = "1"
        kept_files.default_folder = lambda: folder
        argv = json.loads(case.content)
        restore()
        with open(os.devnull, encoding="utf-8") as sys.stdin, Written() as written:
            status = cli.main(argv)
            said = written.said()
        if status not in STATUSES or "Traceback" in said or "a bug of flatlm" in said:
            raise UnexpectedError(f"{status}: {said[-300:]}")

    cases = st.one_of(arguments(), arguments()).map(lambda argv: Case(ARGUMENTS, json.dumps(argv).encode()))
    return Prepared(cases, run_case)


class UnexpectedError(AssertionError):
    """Another status than flatlm has, or a traceback."""


class Written:
    """stdout and stderr, of UTF-8, in a file that the limits count; and what was said there."""

    def __enter__(self) -> Written:
        self._before = sys.stdout, sys.stderr
        self._start = os.fstat(1).st_size
        sys.stdout = open(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
        sys.stderr = open(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.close()
        sys.stderr.close()
        sys.stdout, sys.stderr = self._before

    def said(self) -> str:
        sys.stdout.flush()
        sys.stderr.flush()
        return os.pread(1, 1 << 20, self._start).decode(errors="replace")


COMMANDS = tuple(
    f"flatlm.runtime.commands.{name}" for name in ("bench", "chat", "compare", "eval", "generate", "info")
)
COMMAND_LINE = Target(
    "command line",
    ("flatlm.runtime.cli", "flatlm.runtime.options", *COMMANDS),
    command_line,
    Limits(seconds=20.0, memory=4 << 30),
)
