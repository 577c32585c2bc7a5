"""flatlm.runtime.evaluation: runs that are killed and go on, what their figures say, and how two compare."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flatlm.runtime.errors import UsageError
from flatlm.runtime.evaluation import intervals, summary
from flatlm.runtime.evaluation.comparison import differing, matched, pair
from flatlm.runtime.evaluation.run_file import Run, RunFile, read_run
from flatlm.runtime.evaluation.runner import Asking, record, request, run
from flatlm.runtime.evaluation.tasks import TASKS, Item
from flatlm.runtime.options import PromptOptions
from tests.evaluation_child import ASKING, ITEMS, SETTINGS, answer

ROOT = Path(__file__).parent.parent


def finish(path, limit=None, asking=ASKING):
    with RunFile(path, SETTINGS) as run_file:
        return run(TASKS["gsm8k"], ITEMS[:limit], asking, answer, run_file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its file."""
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    finish(path)
    return path


def lines(path):
    return sorted(path.read_text(encoding="utf-8").split("\n"))


def test_a_run_killed_at_ten_random_moments_ends_as_one_that_was_not(tmp_path, whole):
    path, chance = tmp_path / "run.jsonl", random.Random(0)
    command = [sys.executable, "-m", "tests.evaluation_child", str(path)]
    for kill in range(10):
        wanted = 2000 * chance.random() / 3 + (path.stat().st_size if kill else 0)
        process = subprocess.Popen(command, cwd=ROOT)
        while not path.exists() or path.stat().st_size < wanted:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.001)
        time.sleep(0.003 * chance.random())
        process.kill()
        assert process.wait() == -9
    assert 10 < len(lines(path)) < len(ITEMS)
    subprocess.run(command, cwd=ROOT, check=True)
    assert lines(path) == lines(whole)


def test_a_file_cut_off_at_any_byte_goes_on_to_the_same_records(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)  # a thousand runs
    path = tmp_path / "run.jsonl"
    expected = finish(path, limit=2)
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        assert finish(path, limit=2) == expected
        assert lines(path) == sorted(content.decode().split("\n"))


def test_a_damaged_last_line_is_redone_and_a_damaged_middle_one_is_named(tmp_path, whole):
    content, path = whole.read_bytes().splitlines(keepends=True), tmp_path / "run.jsonl"
    path.write_bytes(b"".join(content[:5]) + b"\0" * 50 + b"\n")
    assert finish(path) == finish(whole)
    path.write_bytes(b"".join([*content[:3], b"\0\n", *content[4:]]))
    with pytest.raises(UsageError, match="line 4 is damaged"):
        finish(path)


def test_a_run_goes_on_only_with_its_own_settings(tmp_path):
    path = tmp_path / "run.jsonl"
    finish(path, limit=2)
    before = path.read_bytes()
    with pytest.raises(
        UsageError, match=r"other settings: reads None, now 2; task 'gsm8k', now 'svamp'\. Give"
    ):
        RunFile(path, {**SETTINGS, "task": "svamp", "reads": 2})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"precious", b'{"a": 1}', b"{}\n", b'{"flatlm_run": 2, "settings": {}}\n']
)
def test_a_file_that_is_no_run_is_left_alone(tmp_path, content):
    path = tmp_path / "thesis.txt"
    path.write_bytes(content)
    for opened in (lambda: RunFile(path, SETTINGS), lambda: read_run(path)):
        with pytest.raises(UsageError, match="is no run"):
            opened()
    assert path.read_bytes() == content


def test_two_processes_cannot_write_one_run(tmp_path):
    path = tmp_path / "run.jsonl"
    with RunFile(path, SETTINGS), pytest.raises(UsageError, match="another process"):
        RunFile(path, SETTINGS)
    finish(path, limit=1)


def test_a_run_can_be_lengthened_and_the_first_part_looked_at_again(tmp_path, whole):
    path = tmp_path / "run.jsonl"
    first = finish(path, limit=5)
    assert finish(path)[:5] == first == finish(path, limit=5)
    assert lines(path) == lines(whole)


def test_progress_counts_what_is_still_to_do(tmp_path):
    path, seen = tmp_path / "run.jsonl", []
    finish(path, limit=3)
    with RunFile(path, SETTINGS) as run_file:
        run(TASKS["gsm8k"], ITEMS[:5], ASKING, answer, run_file, lambda *counts: seen.append(counts))
    assert seen == [(1, 2), (2, 2)]


def test_every_sample_has_a_seed_of_its_own_whenever_it_is_asked():
    seeds = [request(TASKS["gsm8k"], item, ASKING, sample).seed for item in ITEMS for sample in range(3)]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**63
    other = request(TASKS["gsm8k"], ITEMS[0], Asking(PromptOptions(), seed=8)).seed
    assert other not in seeds
    assert request(TASKS["gsm8k"], ITEMS[0], ASKING).seed == seeds[0]


# ---- figures


def scored(right, authors_right, reason="stop", text="\\boxed{1}"):
    cost = {
        "prompt_tokens": 100,
        "reused_tokens": 40,
        "prefill_seconds": 0.5,
        "generated_tokens": 11,
        "decode_seconds": 2.0,
    }
    answers = [{"text": text, "finish_reason": reason}]
    return {
        "answers": answers,
        "answer": "1" if right else None,
        "right": right,
        "authors_right": authors_right,
        "cost": cost,
    }


def test_a_summary_counts_and_says_what_it_cost():
    records = [scored(True, True), scored(True, False), scored(False, False, "length"), scored(False, False)]
    figures = summary.summarize(records)
    assert (figures["n"], figures["right"], figures["share"], figures["authors"]["right"]) == (4, 2, 0.5, 1)
    assert (figures["parsers_differ"], figures["unread"], figures["cut_off"]) == (1, 2, 1)
    assert (figures["prefill_rate"], figures["decode_rate"]) == (60 / 0.5, 10 / 2.0)
    assert summary.lines(figures) == [
        "right 50.0 % (2/4, 95 % interval 15.0 … 85.0)",
        "by the authors' parser 25.0 % (1/4, 95 % interval 4.6 … 69.9)",
        "the parsers differ on 1, no answer read in 2",
        "an answer: prompt 100.0 tokens (40.0 reused), read in 500.0 ms; wrote 11.0 tokens in 2.00 s",
        "all 4 answers: 10.0 s (1440 an hour), prompt 120.0 t/s, answer 5.0 t/s, 1 cut off at -n or the "
        "context",
    ]


def test_samples_vote_and_their_costs_add_up():
    item = Item("a", "?", "3")
    given = [answer_of(text) for text in ("\\boxed{5}", "3.0", "#### 3", "none")]
    line = record(TASKS["gsm8k"], item, given)
    assert (line["answer"], line["right"], line["cost"]["generated_tokens"]) == ("3", True, 12)
    assert [one["text"] for one in line["answers"]] == ["\\boxed{5}", "3.0", "#### 3", "none"]


def answer_of(text):
    (_, given), *_ = answer([request(TASKS["gsm8k"], ITEMS[0], ASKING)])
    return type(given)(text, "stop", given.cost)


# ---- two runs


def test_pairing_takes_the_items_both_have(tmp_path, whole):
    a, b = read_run(whole), Run(SETTINGS, [{**one, "right": True} for one in read_run(whole).records[3:10]])
    a, b = matched(a, b)
    assert [one["id"] for one in a.records] == [one["id"] for one in b.records]
    paired = pair(a, b)
    right = sum(one["right"] for one in a.records)
    assert (paired.n, paired.both, paired.only_b, paired.only_a, paired.neither) == (
        7,
        right,
        7 - right,
        0,
        0,
    )
    assert paired.difference == (7 - right) / 7


def test_runs_of_different_files_are_not_paired(whole):
    a = read_run(whole)
    with pytest.raises(UsageError, match="file_sha256"):
        matched(a, Run({**SETTINGS, "file_sha256": "1"}, a.records))
    with pytest.raises(UsageError, match="no item in common"):
        matched(a, Run(SETTINGS, []))


def test_settings_that_differ_are_told():
    a, b = Run({"task": "x", "reads": 1}, []), Run({"task": "x", "reads": 2, "draft": "off"}, [])
    assert differing(a, b) == {"reads": (1, 2), "draft": (None, "off")}


# ---- intervals


@pytest.mark.parametrize(  # Newcombe, Statistics in Medicine 17:857-872 (1998), table I, method 3
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_published_intervals(right, n, low, high):
    assert intervals.wilson(right, n) == pytest.approx((low, high), abs=5e-5)


def test_the_paired_interval_gives_a_published_one():
    # 36, 12, 2, 0: Newcombe, Statistics in Medicine 17:2635-2650 (1998), method 10
    assert intervals.paired_difference(36, 2, 12, 0) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)


def test_the_paired_interval_turns_with_its_sides():
    difference, low, high = intervals.paired_difference(700, 40, 70, 509)
    assert intervals.paired_difference(700, 70, 40, 509) == pytest.approx((-difference, -high, -low))
    assert low < difference < high


def test_the_paired_interval_covers_the_truth_as_often_as_it_says():
    rng, shares = np.random.default_rng(0), (0.4, 0.1, 0.15, 0.35)
    hits = 0
    for table in rng.multinomial(100, shares, 2000).tolist():
        _, low, high = intervals.paired_difference(*table)
        hits += low <= 0.05 <= high
    assert 0.93 < hits / 2000 < 0.98


def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ():
    assert intervals.mcnemar(1, 7) == intervals.mcnemar(7, 1) == 2 * (1 + 8) / 2**8
    assert (intervals.mcnemar(0, 0), intervals.mcnemar(5, 5)) == (1.0, 1.0)
    assert intervals.mcnemar(0, 2000) == pytest.approx(0.0, abs=1e-300)


def test_a_picture_is_drawn_where_matplotlib_is_there(tmp_path, whole):
    pytest.importorskip("matplotlib")
    from flatlm.runtime.evaluation.plot import draw

    a = read_run(whole)
    draw(tmp_path / "x.png", ("cot", "cot-re2"), pair(a, a))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_lines_of_a_run_are_json_with_the_answers_as_written(whole):
    head, first, *_ = whole.read_text(encoding="utf-8").split("\n")
    assert json.loads(head) == {"flatlm_run": 1, "settings": SETTINGS}
    assert json.loads(first)["answers"][0]["text"].startswith("ünï")
