"""The `Answerer` of an opened model: one request at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from runtime.evaluation.runner import Answer, Answerer, Request
from runtime.options import SamplingOptions

if TYPE_CHECKING:
    from runtime.llm import LLM, Stream

COSTS = ("prompt_tokens", "reused_tokens", "prefill_seconds", "generated_tokens", "decode_seconds")


def one_at_a_time(llm: LLM, sampling: SamplingOptions) -> Answerer:
    """Answers of `llm`: a request's seed replaces that of `sampling`, its stops are added."""

    def answer(requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        for index, request in enumerate(requests):
            done = start(llm, request, sampling).run()
            cost = {name: getattr(done.timings, name) for name in COSTS}
            yield index, Answer(done.text, done.finish_reason, cost)

    return answer


def start(llm: LLM, request: Request, sampling: SamplingOptions) -> Stream:
    """The stream of `request`; nothing is computed until it is read."""
    options = asdict(replace(sampling, seed=request.seed, stop=(*sampling.stop, *request.stop)))
    if isinstance(request.prompt, str):
        return llm.stream(request.prompt, **options)
    return llm.stream_chat(request.prompt, **options)
