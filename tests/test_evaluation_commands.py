"""`flatlm eval` and `flatlm compare`: whole runs, and what is refused before they begin; styles elsewhere."""

from __future__ import annotations

import json

import pytest

from tests import test_cli
from tests.test_evaluation_tasks import GSM8K, HUMANEVAL, write
from tests.tiny_text import FakeBackend, ScriptedBackend, byte_level, write_folder

machine, flatlm = test_cli.machine, test_cli.flatlm  # fixtures


def saying(text):
    return lambda: ScriptedBackend([*byte_level().encode(text).ids, 0], context=4096)


@pytest.fixture
def gsm8k(tmp_path):
    return [
        "gsm8k",
        "--file",
        str(write(tmp_path / "test.jsonl", GSM8K)),
        "--out",
        str(tmp_path / "run.jsonl"),
    ]


def test_a_task_prints_its_figures_and_keeps_the_run(flatlm, machine, gsm8k, tmp_path):
    machine.backends["native"] = saying("So \\boxed{18}")
    status, out, err = flatlm("eval", *gsm8k, "--re2", "--prompt-style", "cot", "--show-prompt", "--json")
    result = json.loads(out)
    assert (status, result["n"], result["right"], result["authors"]["right"]) == (0, 3, 1, 1)
    assert result["cost"]["prompt_tokens"] > result["cost"]["reused_tokens"] > 0
    assert "<|start|>user\nQ: What is 2 * 9?\nRead the question again: What is 2 * 9?\nYour final" in err
    assert len((tmp_path / "run.jsonl").read_text(encoding="utf-8").split("\n")) == 5


def test_a_task_goes_on_where_it_was_and_only_with_the_same_settings(flatlm, machine, gsm8k):
    machine.backends["native"] = saying("\\boxed{18}")
    assert flatlm("eval", *gsm8k, "--limit", "1")[1].startswith("right 100.0 % (1/1")
    machine.backends["native"] = saying("\\boxed{-2}")
    status, out, err = flatlm("eval", *gsm8k, "-t", "2")
    assert (status, "(2/3" in out, "has 1 items already" in err) == (0, True, True)
    status, out, err = flatlm("eval", *gsm8k, "--re2")
    assert (status, out) == (2, "")
    assert "begun with other settings: reads 1, now 2." in err


def test_samples_vote(flatlm, machine, gsm8k, tmp_path):
    machine.backends["native"] = saying("\\boxed{18}")
    result = json.loads(
        flatlm("eval", *gsm8k, "--samples", "3", "--temp", "0.7", "--top-k", "2", "--json")[1]
    )
    assert (result["n"], result["answers"]) == (3, 9)


def test_humaneval_runs_programs_only_where_that_is_allowed(flatlm, machine, tmp_path):
    machine.backends["native"] = saying("```python\ndef square(x):\n    return x * x\n```")
    file = write(tmp_path / "HumanEval.jsonl", HUMANEVAL)
    arguments = ["humaneval", "--file", str(file), "--out", str(tmp_path / "run.jsonl")]
    status, _, err = flatlm("eval", *arguments)
    assert (status, machine.opened, "--allow-code-execution permits it" in err) == (2, [], True)
    status, out, _ = flatlm("eval", *arguments, "--allow-code-execution")
    assert (status, "right 100.0 % (1/1" in out, "passed 1" in out) == (0, True, True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "3"], "--samples needs --temp"),
        (["--shots", "2"], "--shots N and --shots-file FILE go together"),
        (["--limit", "0"], "--limit 0"),
        (["--reference", "x"], "eval gsm8k has no --reference: leave it out"),
    ],
)
def test_what_cannot_work_is_said_before_the_model_is_opened(flatlm, machine, gsm8k, more, message):
    status, _, err = flatlm("eval", *gsm8k, *more)
    assert (status, machine.opened) == (2, [])
    assert message in err


def test_a_task_needs_its_file_and_a_place_for_the_run(flatlm, machine):
    assert "needs --file FILE" in flatlm("eval", "gsm8k")[2]
    assert "give the text: --text FILE" in flatlm("eval", "ppl")[2]
    assert "give --reference MODEL" in flatlm("eval", "kl", "--text", "x")[2]
    assert "eval ppl has no --batch: leave it out" in flatlm("eval", "ppl", "--text", "x", "--batch", "4")[2]
    assert "eval kl has no --re2: leave it out" in flatlm("eval", "kl", "--text", "x", "--re2")[2]


def test_more_examples_than_there_are_is_an_error(flatlm, gsm8k):
    status, _, err = flatlm("eval", *gsm8k, "--shots", "4", "--shots-file", gsm8k[2])
    assert (status, "has no 4 worked answers" in err) == (2, True)


def test_a_base_model_takes_no_style_for_programs(flatlm, machine, tmp_path):
    write_folder(machine.folder, byte_level(), {"chat_template": None})
    file = write(tmp_path / "HumanEval.jsonl", HUMANEVAL)
    arguments = [
        "humaneval",
        "--file",
        str(file),
        "--out",
        str(tmp_path / "run.jsonl"),
        "--allow-code-execution",
    ]
    assert "leave --re2 and --prompt-style out" in flatlm("eval", *arguments, "--re2")[2]
    machine.backends["native"] = saying("    return x * x\n\nprint(square(2))")
    assert "right 100.0 %" in flatlm("eval", *arguments)[1]


def test_kl_reports_as_llama_cpp_does(flatlm, machine, tmp_path):
    machine.backends["native"] = lambda: FakeBackend(context=128)
    (tmp_path / "text.txt").write_text("some text " * 10)
    arguments = [
        "kl",
        "--text",
        str(tmp_path / "text.txt"),
        "--window",
        "16",
        "--reference",
        str(machine.folder),
    ]
    status, out, _ = flatlm("eval", *arguments)
    assert (status, "KL mean 0.000000" in out, "same likeliest token 100.000 %" in out) == (0, True, True)
    result = json.loads(flatlm("eval", *arguments, "--json")[1])
    assert (result["maximum"], result["tokens"]) == (0.0, 90)


def test_compare_pairs_two_runs(flatlm, machine, gsm8k, tmp_path, capsys):
    other = str(tmp_path / "other.jsonl")
    machine.backends["native"] = saying("\\boxed{1,200}")
    flatlm("eval", *gsm8k)
    machine.backends["native"] = saying("\\boxed{9,999,999} \\boxed{18}")
    flatlm("eval", *gsm8k[:4], other, "--re2")
    status, out, _ = test_cli.run_main(capsys, "compare", gsm8k[4], other)
    assert status == 0
    assert "reads: A 1, B 2" in out
    assert "B − A +0.0 points" in out and "McNemar p 1; right in both 0, only A 1, only B 1, neither 1" in out
    result = json.loads(test_cli.run_main(capsys, "compare", gsm8k[4], other, "--json")[1])
    assert (result["right"]["n"], result["b"]["right"], result["settings"]) == (3, 1, {"reads": [1, 2]})


# ---- generate and chat


def test_generate_reads_the_question_twice_and_shows_it(flatlm, machine):
    machine.backends["native"] = saying("Paris")
    status, out, err = flatlm("generate", "-p", "Some text.\n---\nWhere?", "--re2", "--show-prompt")
    assert (status, out) == (0, "Paris\n")
    expected = "Some text.\n\nQ: Where?\nRead the question again: Where?\nA:"
    assert f"<|start|>user\n{expected}<|end|>\n<|start|>assistant\n" in err
    assert (
        expected in flatlm("generate", "-p", "Some text.\n---\nWhere?", "--re2", "--show-prompt", "--raw")[2]
    )


def test_chat_keeps_a_line_as_it_was_put(flatlm, machine, monkeypatch):
    machine.backends["native"] = saying("Hm")
    said = iter(["a?", "b?"])

    def read():
        line = next(said, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("flatlm.runtime.commands.chat._read_line", read)
    status, _, err = flatlm("chat", "--prompt-style", "cot", "--show-prompt")
    assert status == 0
    first, second = "Q: a?\nA: Let's think step by step.", "Q: b?\nA: Let's think step by step."
    turns = f"<|start|>user\n{first}<|end|>\n<|start|>assistant\nHm<|end|>\n<|start|>user\n{second}<|end|>\n"
    assert turns in err
