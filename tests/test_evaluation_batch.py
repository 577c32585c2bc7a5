"""Answers written side by side are those of one at a time: whole runs of a tiny model, killed ones too."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flatlm.runtime.cli import main
from tests.tiny_models import tiny_model

pytest.importorskip("numba", reason="the native backend compiles its kernels")

ROOT = Path(__file__).parent.parent
ITEMS = 24


@pytest.fixture(scope="module", params=["float32", "int8"])
def model(request, tmp_path_factory):
    """A tiny random model, exported with each kind of cache."""
    from flatlm.export import exporter
    from flatlm.export.recipe import RECIPES
    from flatlm.export.sources import open_source

    folder = tmp_path_factory.mktemp("model")
    source = tiny_model(folder / "source", architecture="qwen2", seed=5, context_length=640)
    recipe = dataclasses.replace(RECIPES["w8a8"], windows=2, alphas=(0.5,), kv=request.param)
    exporter.export(
        open_source(str(source)), folder / "tiny", recipe, tell=lambda stage: lambda *counts: None
    )
    return folder / "tiny"


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A file of gsm8k with questions of many lengths."""
    path = tmp_path_factory.mktemp("task") / "test.jsonl"
    items = [
        {"question": f"What is {i} + {i}?" + " Again?" * (i % 7), "answer": f"#### {i}"} for i in range(ITEMS)
    ]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def arguments(model, questions, out, *more):
    return ["eval", str(model), "gsm8k", "--file", str(questions), "--out", str(out), "-t", "2", *more]


def answers(path):
    """What a run's lines say but for times and what was reused, by item."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[1:-1]]
    assert len({line["id"] for line in lines}) == len(lines)
    kept = ("prompt_tokens", "generated_tokens")
    return {line["id"]: {**line, "cost": {name: line["cost"][name] for name in kept}} for line in lines}


def costs(path):
    return [json.loads(line)["cost"] for line in path.read_text(encoding="utf-8").split("\n")[1:-1]]


VARIED = ("--repeat-penalty", "9", "--repeat-last-n", "-1")  # a random model writes one token for ever
GREEDY = ("-n", "40", "--re2", "--prompt-style", "cot", "--stop", "q", *VARIED)
SAMPLED = ("--samples", "3", "--temp", "2", "--min-p", "0", "--seed", "3", "-n", "20", *VARIED)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_run_side_by_side_is_that_of_one_at_a_time(model, questions, tmp_path, options):
    for batch in ("1", "5", "16"):
        path = tmp_path / f"{batch}.jsonl"
        assert main(arguments(model, questions, path, *options, "--batch", batch)) == 0
        assert answers(path) == answers(tmp_path / "1.jsonl")
        assert len(answers(path)) == ITEMS
    reused = [sum(cost["reused_tokens"] for cost in costs(tmp_path / f"{b}.jsonl")) for b in (1, 16)]
    assert 0 < reused[0] <= reused[1]
    texts = {answer["text"] for line in answers(path).values() for answer in line["answers"]}
    assert len(texts) > ITEMS / 2  # else the runs could be equal by having nothing to say


def test_drafted_answers_are_the_plain_ones_however_many_are_written_together(model, questions, tmp_path):
    plain, drafted = tmp_path / "plain.jsonl", tmp_path / "drafted.jsonl"
    assert main(arguments(model, questions, plain, *GREEDY)) == 0
    assert main(arguments(model, questions, drafted, *GREEDY, "--draft", "maxgram")) == 0
    assert answers(plain) == answers(drafted)
    for batch in ("1", "2", "5"):
        together = tmp_path / f"{batch}.jsonl"
        options = ("--draft", "maxgram", "--batch", batch)
        assert main(arguments(model, questions, together, *GREEDY, *options)) == 0
        assert answers(plain) == answers(together)


def test_less_memory_is_fewer_answers_side_by_side(model, questions, tmp_path, monkeypatch):
    from flatlm.runtime.backends.native import NativeBackend
    from flatlm.runtime.format.artifact import open_artifact
    from flatlm.runtime.memory import cache_bytes

    graph = open_artifact(model).graph
    weights = sum(tensor.data.nbytes for tensor in graph.constants.values())
    seen, opened = [], NativeBackend.__init__
    monkeypatch.setattr(
        "flatlm.runtime.memory.available_bytes", lambda: weights + 6 * cache_bytes(graph, 640)
    )

    def spy(self, *given, **options):
        seen.append(options["slots"])
        opened(self, *given, **options)

    monkeypatch.setattr(NativeBackend, "__init__", spy)
    assert main(arguments(model, questions, tmp_path / "run.jsonl", *GREEDY, "--limit", "6")) == 0
    assert seen == [16, 8, 4]
    assert main(arguments(model, questions, tmp_path / "more.jsonl", *GREEDY, "--batch", "9")) == 1
    assert main(arguments(model, questions, tmp_path / "run.jsonl", *GREEDY, "--batch", "2")) == 0


@pytest.mark.parametrize("model", ["float32"], indirect=True)
def test_a_run_killed_at_ten_random_moments_ends_as_one_that_was_not(model, questions, tmp_path):
    whole, path, chance = tmp_path / "whole.jsonl", tmp_path / "run.jsonl", random.Random(0)
    assert main(arguments(model, questions, whole, *SAMPLED, "--batch", "4")) == 0
    command = [sys.executable, "-c", "import sys; from flatlm.runtime.cli import main; sys.exit(main())"]
    command += arguments(model, questions, path, *SAMPLED, "--batch", "4")
    killed = 0
    while killed < 10:
        wanted = (path.stat().st_size if killed else 0) + 2 * chance.random() * whole.stat().st_size / ITEMS
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not path.exists() or path.stat().st_size < wanted):
            time.sleep(0.0005)
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002 * chance.random())
        process.kill()
        assert process.wait() == -9
        killed += 1
    assert 0 < path.read_bytes().count(b"\n") < ITEMS
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert answers(path) == answers(whole)
