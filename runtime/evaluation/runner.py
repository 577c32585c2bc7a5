"""A run of a task: items → requests → answers → scores, one line of the run's file each.

The runner knows no model. It asks through one function, `Answerer`: requests in, (index, answer) out as they
come, in any order, so that one at a time and many at once are the same to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flatlm.runtime.evaluation import answers, authors, programs
from flatlm.runtime.evaluation.run_file import RunFile
from flatlm.runtime.evaluation.tasks import Item, Task, messages
from flatlm.runtime.options import PromptOptions
from flatlm.runtime.progress import Progress
from flatlm.runtime.text.prompt_styles import Exemplar, plain_text

BASE_STOPS = {  # where a base model begins the next question, or leaves the function it continues
    "program": ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint("),  # those of Codex (arXiv 2107.03374)
    "question": tuple("\n" + start for start in answers.QUESTIONS),
}


@dataclass(frozen=True)
class Request:
    """One answer that is wanted: to messages, through the chat template, or to a text, by continuing it."""

    prompt: str | tuple[dict[str, Any], ...]
    seed: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a model wrote. `cost` are numbers that add up over answers: fields of `runtime.llm.Timings`."""

    text: str
    finish_reason: str
    cost: dict[str, float]


Answerer = Callable[[Sequence[Request]], Iterable[tuple[int, Answer]]]


@dataclass(frozen=True)
class Asking:
    """How the items of a run are put to the model; `chat` where it has a chat template."""

    prompt: PromptOptions
    exemplars: tuple[Exemplar, ...] = ()
    chat: bool = True
    samples: int = 1
    seed: int = 0


def run(
    task: Task,
    items: Sequence[Item],
    asking: Asking,
    answer: Answerer,
    file: RunFile,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Answer the `items` that `file` does not have yet; returns the records of all, in their order."""
    done = {record["id"] for record in file.records}
    missing = [item for item in items if item.id not in done]
    wanted = [request(task, item, asking, sample) for item in missing for sample in range(asking.samples)]
    given: dict[int, dict[int, Answer]] = {}
    finished = 0
    for index, one in answer(wanted):
        number, sample = divmod(index, asking.samples)
        samples = given.setdefault(number, {})
        samples[sample] = one
        if len(samples) == asking.samples:
            file.append(record(task, missing[number], [samples[i] for i in range(asking.samples)]))
            del given[number]
            finished += 1
            if progress is not None:
                progress(finished, len(missing))
    records = {record["id"]: record for record in file.records}
    return [records[item.id] for item in items]


def request(task: Task, item: Item, asking: Asking, sample: int = 0) -> Request:
    """What is asked for one sample of an item. Its seed depends on the item, not on when it is asked."""
    digest = hashlib.blake2b(f"{asking.seed}/{item.id}/{sample}".encode(), digest_size=7).digest()
    seed = int.from_bytes(digest, "little")
    said = messages(task, item, asking.prompt, asking.exemplars)
    if asking.chat:
        return Request(tuple(said), seed)
    if task.kind == "program":
        return Request(item.question, seed, BASE_STOPS["program"])
    return Request(plain_text(said), seed, BASE_STOPS["question"])


def record(task: Task, item: Item, samples: Sequence[Answer]) -> dict[str, Any]:
    """An item's line: its answers as written and as read, whether they are right, and what they cost."""
    written = [{"text": one.text, "finish_reason": one.finish_reason} for one in samples]
    score = _run_program(item, samples) if task.kind == "program" else _read(task, item, samples)
    cost = {name: sum(one.cost[name] for one in samples) for name in samples[0].cost}
    return {"id": item.id, "answers": written, **score, "cost": cost}


def _read(task: Task, item: Item, samples: Sequence[Answer]) -> dict[str, Any]:
    """The samples' vote, read strictly and by the authors' rule."""
    strict, theirs = answers.READERS[task.kind], authors.READERS[task.kind]
    read = [strict(one.text, item.options, one.finish_reason != "length") for one in samples]
    ours = answers.vote(None if value is None else str(value) for value in read)
    other = answers.vote(theirs(one.text, item.options) for one in samples)
    return {
        "target": item.target,
        "answer": ours,
        "right": ours == item.target,
        "authors_answer": other,
        "authors_right": authors.right(other, item.target),
    }


def _run_program(item: Item, samples: Sequence[Answer]) -> dict[str, Any]:
    (one,) = samples
    result = programs.run(programs.assemble(item.question, item.entry_point, item.target, one.text))
    return {"result": result, "right": result == programs.PASSED}
