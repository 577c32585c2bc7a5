"""runtime.evaluation.tasks: the public files as they are, and what is asked of a chat and of a base model."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from flatlm.runtime.errors import UsageError
from flatlm.runtime.evaluation.hub_file import local
from flatlm.runtime.evaluation.runner import Asking, request
from flatlm.runtime.evaluation.tasks import TASKS, exemplars_of, messages, read_items
from flatlm.runtime.options import PromptOptions

GSM8K = [
    {"question": "What is 2 * 9?", "answer": "It is 2*9=$<<2*9=18>>18.\n#### 18"},
    {"question": "What is 700 + 500\u2028?", "answer": "A sum.\n#### 1,200"},
    {"question": "And 3 - 5?", "answer": "Less.\n#### -2"},
]
SVAMP = [{"ID": "chal-1", "Body": "A pack costs 76 dollars", "Question": "How much?", "Answer": 51.0}]
AQUA = [
    {
        "question": "Which?",
        "options": ["A)5(√3 + 1)", "B)$61", "C) 7", "D)8", "E)None of these"],
        "rationale": "7 it is.",
        "correct": "C",
    }
]
HUMANEVAL = [
    {
        "task_id": "HumanEval/0",
        "prompt": "def square(x):\n",
        "entry_point": "square",
        "canonical_solution": "    return x * x\n",
        "test": "def check(candidate):\n    assert candidate(3) == 9\n",
    }
]


def write(path, entries):
    """A file of one JSON object a line."""
    path.write_text("\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries), encoding="utf-8")
    return path


def test_gsm8k_is_read_with_its_answers_and_worked_examples(tmp_path):
    items = read_items(TASKS["gsm8k"], write(tmp_path / "test.jsonl", GSM8K))
    assert [(item.id, item.target) for item in items] == [("0", "18"), ("1", "1200"), ("2", "-2")]
    assert items[0].worked == "It is 2*9=$18.\n\\boxed{18}"
    assert len(read_items(TASKS["gsm8k"], tmp_path / "test.jsonl", limit=2)) == 2


def test_svamp_is_a_list_of_bodies_and_questions(tmp_path):
    path = tmp_path / "SVAMP.json"
    path.write_text(json.dumps(SVAMP, indent=4))
    (item,) = read_items(TASKS["svamp"], path)
    assert (item.id, item.question, item.target) == ("chal-1", "A pack costs 76 dollars How much?", "51")


def test_aqua_asks_with_its_options(tmp_path):
    (item,) = read_items(TASKS["aqua"], write(tmp_path / "test.json", AQUA))
    assert item.question == "Which? Answer Choices: (A) 5(√3 + 1) (B) $61 (C) 7 (D) 8 (E) None of these"
    assert (item.target, item.options[2]) == ("C", "7")


def test_humaneval_is_read_packed_and_unpacked(tmp_path):
    plain = write(tmp_path / "HumanEval.jsonl", HUMANEVAL)
    packed = tmp_path / "HumanEval.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_items(TASKS["humaneval"], plain) == read_items(TASKS["humaneval"], packed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no items"),
        (b"not json", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"\x1f\x8b broken", "cannot be read"),
        (b'{"question": "x"}', "no file of gsm8k: item 0 .*answer.*docs/evaluation.md"),
        (b'["x"]', "no file of gsm8k"),
        (b'{"question": "x", "answer": "no mark"}', "no file of gsm8k"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "test.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_items(TASKS["gsm8k"], path)


def test_a_missing_file_says_where_files_come_from(tmp_path):
    with pytest.raises(UsageError, match=r"docs/evaluation\.md says where"):
        read_items(TASKS["gsm8k"], tmp_path / "openai/gsm8k")


def test_a_chat_model_is_asked_in_turns_and_a_base_model_in_one_text(tmp_path):
    path = write(tmp_path / "train.jsonl", GSM8K)
    (item, *_), shown = read_items(TASKS["gsm8k"], path), exemplars_of(TASKS["gsm8k"], path, 2)
    options = PromptOptions("cot", re2=True)
    turns = messages(TASKS["gsm8k"], item, options, shown)
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert all(turn["content"].count("?") == 2 for turn in turns[::2])
    asked = request(TASKS["gsm8k"], item, Asking(options, tuple(shown), chat=False))
    assert asked.prompt == "".join(
        turn["content"] if turn["role"] == "user" else f" {turn['content']}\n\n" for turn in turns
    )
    assert {"\nQ:", "\nQuestion:", "\nUser:"} <= set(asked.stop)


def test_a_base_model_continues_a_function_as_it_is(tmp_path):
    (item,) = read_items(TASKS["humaneval"], write(tmp_path / "x.jsonl", HUMANEVAL))
    asked = request(TASKS["humaneval"], item, Asking(PromptOptions(), chat=False))
    assert (asked.prompt, "\ndef " in asked.stop) == ("def square(x):\n", True)


def test_a_file_may_lie_on_the_hub(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repo_id, filename, *, repo_type):
        asked.append((repo_id, filename, repo_type))
        if filename == "missing.jsonl":
            raise RuntimeError("404 Client Error.\nmore")
        return str(tmp_path / "test.jsonl")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert local("here/test.jsonl") == Path("here/test.jsonl")
    assert local("hub:someone/gsm8k/data/test.jsonl") == tmp_path / "test.jsonl"
    assert asked == [("someone/gsm8k", "data/test.jsonl", "dataset")]
    with pytest.raises(UsageError, match=r"404 Client Error\. Check the name and the network"):
        local("hub:someone/gsm8k/missing.jsonl")
    for name in ("hub:someone/gsm8k", "hub:someone//x", "hub:"):
        with pytest.raises(UsageError, match="write hub:OWNER/DATASET/PATH"):
            local(name)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a": ' * 100_000, b"\xff", gzip.compress(b"{}")[:-9], b"\x1f\x8b" + b"\0" * 30],
)
def test_a_damaged_file_of_a_task_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "test.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match=r"test\.jsonl"):
        read_items(TASKS["gsm8k"], tmp_path / "test.jsonl")


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="pip install huggingface_hub"):
        local("hub:someone/gsm8k/test.jsonl")
