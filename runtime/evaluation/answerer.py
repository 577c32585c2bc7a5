"""The `Answerer` of an opened model: as many answers side by side as it has sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flatlm.runtime.evaluation.run_file import COSTS
from flatlm.runtime.evaluation.runner import Answer, Answerer, Request
from flatlm.runtime.options import SamplingOptions

if TYPE_CHECKING:
    from flatlm.runtime.generation.answer import Prompt
    from flatlm.runtime.llm import LLM


def answerer(llm: LLM, sampling: SamplingOptions) -> Answerer:
    """Answers of `llm`: a request's seed replaces that of `sampling`, its stops are added."""

    def answer(requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        prompts = (prompt_of(llm, request, sampling) for request in requests)
        for index, done in llm.answer_many(prompts):
            cost = {name: getattr(done.timings, name) for name in COSTS}
            yield index, Answer(done.text, done.finish_reason, cost)

    return answer


def prompt_of(llm: LLM, request: Request, sampling: SamplingOptions) -> Prompt:
    """What the model is sent for `request`."""
    sampling = replace(sampling, seed=request.seed, stop=(*sampling.stop, *request.stop))
    if isinstance(request.prompt, str):
        return llm.text_prompt(request.prompt, sampling)
    return llm.chat_prompt(request.prompt, sampling)
