"""A run with a made-up model, as a process that tests can kill: python -m tests.evaluation_child RUN.jsonl"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flatlm.runtime.evaluation.run_file import RunFile
from flatlm.runtime.evaluation.runner import Answer, Asking, Request, run
from flatlm.runtime.evaluation.tasks import TASKS, Item
from flatlm.runtime.options import PromptOptions

ITEMS = [Item(str(i), f"What is {i} + {i}?", str(2 * i)) for i in range(120)]
ASKING = Asking(PromptOptions("cot", re2=True), samples=2, seed=7)
SETTINGS = {"task": "gsm8k", "file_sha256": "0"}


def answer(requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
    """Answers that depend on the request alone, some of them wrong, the last of five requests first."""
    order = [
        i for start in range(0, len(requests), 5) for i in reversed(range(len(requests))[start : start + 5])
    ]
    for index in order:
        request = requests[index]
        assert not isinstance(request.prompt, str)
        number = int(request.prompt[-1]["content"].split()[3])
        wrong = request.seed % 3 == 0
        cost = {"prompt_tokens": number, "reused_tokens": 0, "prefill_seconds": 0.5, "generated_tokens": 3}
        text = f"ünï\n\\boxed{{{2 * number + wrong}}}"
        yield index, Answer(text, "stop", {**cost, "decode_seconds": 1.0})


def slowly(requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
    """The same, with time for a kill to fall anywhere."""
    for pair in answer(requests):
        time.sleep(0.004)
        yield pair


if __name__ == "__main__":
    with RunFile(Path(sys.argv[1]), SETTINGS) as run_file:
        run(TASKS["gsm8k"], ITEMS, ASKING, slowly, run_file)
