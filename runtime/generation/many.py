"""Many prompts answered side by side: as an answer ends, the next prompt takes its place."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flatlm.runtime.errors import FlatlmError
from flatlm.runtime.generation.answer import AnswerText, Completion, Prompt, Timings
from flatlm.runtime.generation.batch import Batch, Writer
from flatlm.runtime.generation.sampler import make_sampler

if TYPE_CHECKING:
    from flatlm.runtime.text.tokenizer import Tokenizer


@dataclass
class _Open:
    """An answer that is being written."""

    index: int
    prompt: Prompt
    text: AnswerText
    pieces: list[str] = field(default_factory=list)

    def completion(self, writer: Writer) -> Completion:
        timings = Timings(
            len(writer.prompt),
            writer.reused,
            writer.read_seconds,
            len(writer.ids) - len(writer.prompt),
            writer.write_seconds,
        )
        text, reason = "".join([*self.pieces, self.text.finish()]), "stop" if self.text.stopped else "length"
        return Completion(text, tuple(self.text.tokens), reason, timings, self.prompt.options.seed)


def answer_many(
    batch: Batch, tokenizer: Tokenizer, prompts: Iterable[Prompt], together: int
) -> Generator[tuple[int, Completion], None, None]:
    """(number of the prompt, its answer) as answers end, `together` of them written side by side.

    Prompts are taken as there is room for them. Raises what `Batch.add` raises of a prompt, after the answers
    that were being written have ended.
    """
    coming, answers, refused = enumerate(prompts), dict[Writer, _Open](), list[FlatlmError]()
    try:
        while True:
            if not refused:
                yield from _begin(batch, tokenizer, coming, answers, refused, together)
            if not answers:
                if refused:
                    raise refused[0]
                return
            for writer, number in batch.step():
                answer = answers[writer]
                if piece := answer.text.push(number):
                    answer.pieces.append(piece)
                if answer.text.stopped and not writer.ended:
                    batch.remove(writer)
            for writer in [writer for writer in answers if writer.ended]:
                answer = answers.pop(writer)
                yield answer.index, answer.completion(writer)
    finally:
        batch.clear()


def _begin(
    batch: Batch,
    tokenizer: Tokenizer,
    coming: Iterator[tuple[int, Prompt]],
    answers: dict[Writer, _Open],
    refused: list[FlatlmError],
    together: int,
) -> Iterator[tuple[int, Completion]]:
    """Let prompts join while there is room; those that want no token are answered at once, and one that is
    refused is the last."""
    while len(answers) < together:
        index, prompt = next(coming, (-1, None))
        if prompt is None:
            return
        prompt = prompt.seeded()
        stop_ids, options = tokenizer.eos_ids, prompt.options
        answer = _Open(index, prompt, AnswerText(tokenizer, prompt))
        writer = Writer(prompt.ids, make_sampler(options), options.n, stop_ids)
        if options.n == 0:
            writer.ids = list(prompt.ids)
            yield index, answer.completion(writer)
            continue
        try:
            batch.add(writer)
        except FlatlmError as error:
            refused.append(error)
            return
        answers[writer] = answer
