"""The tasks: how the public files of each are read, asked and scored.

gsm8k      test.jsonl of openai/grade-school-math
svamp      SVAMP.json of arkilpatel/SVAMP
aqua       test.json of google-deepmind/AQuA
humaneval  HumanEval.jsonl, packed or not, of openai/human-eval
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from flatlm.runtime import settings
from flatlm.runtime.errors import UsageError
from flatlm.runtime.evaluation.answers import LETTERS
from flatlm.runtime.options import PromptOptions
from flatlm.runtime.text.prompt_styles import ANSWER_FORMATS, Exemplar, ask, few_shot

CODE = "Write the complete Python function, with its imports, in one ```python block."


@dataclass(frozen=True)
class Item:
    """One item of a file. `question` is what Re2 reads twice."""

    id: str
    question: str
    target: str  # the right answer as text: 1/2, C; of a program its tests
    options: tuple[str, ...] = ()  # of a choice, without their letters
    worked: str = ""  # an answer with its reasoning, in the form that is asked for
    entry_point: str = ""  # of a program, the function that is tested


@dataclass(frozen=True)
class Task:
    """How the items of a file are read, and of what kind the answers are."""

    name: str
    kind: str  # number, choice: read by `answers`; program: executed
    read: Callable[[int, dict[str, Any]], Item]

    @property
    def answer_format(self) -> str:
        """The sentence that asks for the answer's form."""
        return CODE if self.kind == "program" else ANSWER_FORMATS[self.kind]


def _gsm8k(number: int, entry: dict[str, Any]) -> Item:
    reasoning, _, answer = entry["answer"].partition("####")
    target = str(Fraction(answer.strip().replace(",", "")))
    worked = re.sub(r"<<.*?>>", "", reasoning).strip()  # the file's calculator marks
    return Item(str(number), entry["question"].strip(), target, worked=f"{worked}\n\\boxed{{{target}}}")


def _svamp(number: int, entry: dict[str, Any]) -> Item:
    target = str(Fraction(str(entry["Answer"])))
    question = f"{entry['Body'].strip()} {entry['Question'].strip()}"
    return Item(entry["ID"], question, target, worked=f"\\boxed{{{target}}}")


def _aqua(number: int, entry: dict[str, Any]) -> Item:
    options = tuple(option.partition(")")[2].strip() for option in entry["options"])  # "A)5" → "5"
    listed = " ".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=True))
    question = f"{entry['question'].strip()} Answer Choices: {listed}"
    worked = f"{entry['rationale'].strip()}\n\\boxed{{{entry['correct']}}}"
    return Item(str(number), question, entry["correct"], options, worked)


def _humaneval(number: int, entry: dict[str, Any]) -> Item:
    return Item(entry["task_id"], entry["prompt"], entry["test"], entry_point=entry["entry_point"])


TASKS = {
    task.name: task
    for task in (
        Task("gsm8k", "number", _gsm8k),
        Task("svamp", "number", _svamp),
        Task("aqua", "choice", _aqua),
        Task("humaneval", "program", _humaneval),
    )
}


def read_items(task: Task, path: Path, limit: int | None = None) -> list[Item]:
    """The first `limit` items of the file, all by default. UsageError where it is no file of `task`."""
    entries = _entries(_bytes(path), path)[:limit]
    items = []
    for number, entry in enumerate(entries):
        try:
            items.append(task.read(number, entry))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{path} is no file of {task.name}: item {number} ({type(error).__name__}: {error}). "
                "docs/evaluation.md says which files are read"
            ) from None
    if len({item.id for item in items}) != len(items) or not items:
        raise UsageError(f"{path} has {'items of the same name' if items else 'no items'}: is it complete?")
    return items


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def messages(
    task: Task, item: Item, options: PromptOptions, exemplars: Sequence[Exemplar] = ()
) -> list[dict[str, Any]]:
    """What is said to have `item` answered."""
    question = ask(item.question, options, task.answer_format)
    return [*few_shot(exemplars, options, task.answer_format), {"role": "user", "content": question}]


def exemplars_of(task: Task, path: Path, shots: int) -> list[Exemplar]:
    """The first `shots` items of a file with their worked answers."""
    items = read_items(task, path, shots)
    if len(items) < shots or not all(item.worked for item in items):
        raise UsageError(f"{path} has no {shots} worked answers of {task.name} to show")
    return [Exemplar(item.question, item.worked) for item in items]


def _bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(
            f"{path} cannot be read ({error}): --file takes a file of the task; docs/evaluation.md says "
            "where each comes from"
        ) from None


def _entries(content: bytes, path: Path) -> list[dict[str, Any]]:
    """A JSON list, or one object a line."""
    try:
        if content.lstrip().startswith(b"["):
            return list(settings.loads(content))
        return [settings.loads(line) for line in content.split(b"\n") if line.strip()]
    except ValueError as error:
        raise UsageError(f"{path} holds no JSON: {error}") from None
