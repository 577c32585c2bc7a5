"""Flags of habit: what people type from elsewhere is taken, or answered with a sentence."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys

import pytest

from flatlm.runtime.cli import main, parser_of
from flatlm.runtime.commands.habits import HABITS, translated
from flatlm.runtime.errors import UsageError
from flatlm.runtime.measuring.bench import Report, Result
from flatlm.runtime.measuring.forms import FORMS, table
from flatlm.runtime.measuring.thermal import processor

KNOWN = {
    "--predict": True,
    "--temp": True,
    "--raw": False,
    "-p": True,
    "--top-p": True,
    "-m": True,
    "-t": True,
}


def taken(*words):
    said = []
    return list(translated(words, KNOWN, said.append)), said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--n-predict", "5"], ["--predict", "5"]),
        (["--max_tokens=5"], ["--predict=5"]),
        (["--temperature", "0.5"], ["--temp", "0.5"]),
        (["-no-cnv"], ["--raw"]),
        (["--top_p", "0.5"], ["--top-p", "0.5"]),
        (["-hf", "a/b"], ["-m", "a/b"]),
        (["-p", "--temperature"], ["-p", "--temperature"]),
        (["--", "--n-predict"], ["--", "--n-predict"]),
        (["word", "--unknown"], ["word", "--unknown"]),
    ],
)
def test_habits_become_our_flags(words, expected):
    assert taken(*words) == (expected, [])


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["-ngl", "99", "-p", "x"], ["-p", "x"]),
        (["-ngl", "-1", "-p", "x"], ["-p", "x"]),
        (["-ngl=99"], []),
        (["-fa", "-p", "x"], ["-p", "x"]),
        (["-st", "x"], ["x"]),
        (["--mlock"], []),
    ],
)
def test_what_is_not_needed_is_said_and_the_work_goes_on(words, left):
    found, said = taken(*words)
    assert found == left
    assert len(said) == 1 and said[0].startswith(f"flatlm: {words[0].partition('=')[0]} is not needed: ")


@pytest.mark.parametrize("word", ["-ctk", "--lora", "--mmproj", "--chat-template", "--reverse-prompt"])
def test_what_would_change_the_answer_is_an_error(word):
    with pytest.raises(UsageError, match=word):
        taken(word, "x")


@pytest.mark.parametrize("verb", ["generate", "bench"])
def test_a_flag_that_the_verb_has_is_never_taken_for_a_habit(verb):
    own = dict.fromkeys(parser_of(verb)._option_string_actions, False)
    assert {name for habit in HABITS for name in habit.names} & {"-r", "-b", *own}
    assert list(translated(list(own), own, lambda text: None)) == list(own)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "m", "--tmep", "1"], "did you mean '--temp'"),
        (["generate", "m", "why is the sky blue"], "a prompt is given as -p TEXT, or to `flatlm run`"),
        (["--verison"], "did you mean '--version'"),
        (["chat", "m", "--lora", "x"], "adapters have to be merged"),
    ],
)
def test_wrong_flags_get_a_hint(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["-V"], ["version"], ["--version"]])
def test_the_version_by_three_names(arguments, capsys):
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("flatlm ")


def test_help_of_a_verb(capsys):
    assert main(["help", "bench"]) == 0
    assert "usage: flatlm bench" in capsys.readouterr().out


RESULTS = [
    Result(
        "tiny",
        2**20,
        1000,
        "native",
        2,
        "pp512 @ d64",
        (100.0, 200.0),
        "/m/it's",
        "2026-12-01T00:00:00Z",
        "Z",
    ),
    Result("tiny", 2**20, 1000, "native", None, "tg128", (50.0,), "/m", "2026-12-01T00:00:00Z", "Z"),
]


def test_json_has_llama_benchs_fields_beside_ours():
    row, other = json.loads(table(Report(RESULTS), "json"))
    assert (row["n_prompt"], row["n_gen"], row["n_depth"], row["n_threads"]) == (512, 0, 64, 2)
    assert (other["n_prompt"], other["n_gen"], other["n_depth"]) == (0, 128, 0)
    assert (row["model_filename"], row["model_type"], row["cpu_info"]) == ("/m/it's", "tiny", "Z")
    assert row["avg_ts"] == 150 and row["samples_ts"] == row["rates"] == [100, 200]
    assert row["samples_ns"] == [5_120_000_000, 2_560_000_000] and row["avg_ns"] == 3_840_000_000
    assert row["test"] == "pp512 @ d64" and row["size"] == row["model_size"] == 2**20


def test_jsonl_is_an_object_a_line():
    lines = table(Report(RESULTS), "jsonl").splitlines()
    assert [json.loads(line) for line in lines] == json.loads(table(Report(RESULTS), "json"))


def test_sql_is_taken_by_a_database():
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(table(Report(RESULTS), "sql"))
        found = database.execute("SELECT model_filename, avg_ts, n_threads FROM llama_bench ORDER BY avg_ts")
        rows = found.fetchall()
    assert rows == [("/m", 50.0, None), ("/m/it's", 150.0, 2)]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_measured_is_no_error(form):
    assert table(Report(), form) in ("", "[]")


def test_the_processors_name(tmp_path):
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nBogoMIPS\t: 108.00\nModel\t\t: Raspberry Pi 5 Model B\n"
    )
    assert processor(tmp_path / "cpuinfo") == "Raspberry Pi 5 Model B"
    assert processor(tmp_path / "nothing")


ASKED = "import sys; from flatlm.runtime.commands.streams import piped; print(repr(piped(0.05)))"


def piped(stdin, **options):
    done = subprocess.run(
        [sys.executable, "-c", ASKED], stdin=stdin, capture_output=True, text=True, **options
    )
    return done.stdout.strip(), done.stderr


def test_a_file_and_a_pipe_are_read_and_a_device_is_not(tmp_path):
    (tmp_path / "file").write_text("text\n")
    with (tmp_path / "file").open() as file:
        assert piped(file) == ("'text\\n'", "")
    assert piped(subprocess.DEVNULL) == ("''", "")


def test_a_pipe_that_gives_nothing_yet_is_named():
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", ASKED], stdin=read, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.close(read)
    assert "reading standard input" in process.stderr.readline()
    os.write(write, b"late")
    os.close(write)
    assert process.communicate()[0] == "'late'\n"


def test_what_is_piped_in_stands_before_the_prompt(monkeypatch):
    from flatlm.runtime.commands import generate

    monkeypatch.setattr(generate, "piped", lambda: "a file\n")
    args = parser_of("generate").parse_args(["m", "-p", "Summarise"])
    assert generate._text(args) == "a file\n\nSummarise"
    monkeypatch.setattr(generate, "piped", lambda: "")
    assert generate._text(args) == "Summarise"


def test_more_threads_than_cores_are_warned_of(monkeypatch, capsys):
    from flatlm.runtime.commands.common import warn_of_threads
    from flatlm.runtime.options import BackendOptions

    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1}, raising=False)
    warn_of_threads(BackendOptions(threads=2))
    assert capsys.readouterr().err == ""
    warn_of_threads(BackendOptions(threads=3))
    assert "3 threads on 2 cores" in capsys.readouterr().err
