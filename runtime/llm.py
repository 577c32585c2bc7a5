"""The class users meet: text in, text out, over the engine, the tokenizer, the template and a sampler.

    with LLM("smollm2-edge") as llm:
        for piece in llm.stream_chat([{"role": "user", "content": "What is the capital of France?"}]):
            print(piece, end="", flush=True)

An answer is a `Stream`, and the calls that return a `Completion` run one to its end; `answer_many` writes
several side by side. One thread owns an LLM; a new answer ends those before it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flatlm.runtime.beside import beside
from flatlm.runtime.drafting.verify import Rule, invariant, rejection
from flatlm.runtime.errors import BackendError, ContextError, UsageError
from flatlm.runtime.generation import engine, many
from flatlm.runtime.generation.answer import AnswerText, Completion, Prompt, Timings
from flatlm.runtime.generation.batch import Batch
from flatlm.runtime.generation.sampler import Sampler, make_sampler
from flatlm.runtime.memory import give_back
from flatlm.runtime.options import BackendOptions, DraftOptions, PromptOptions, SamplingOptions, from_json
from flatlm.runtime.progress import Progress
from flatlm.runtime.text import prompt, prompt_styles
from flatlm.runtime.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend
    from flatlm.runtime.drafting.kept import Kept
    from flatlm.runtime.drafting.speculator import Speculator
    from flatlm.runtime.format.artifact import Artifact


DEFAULT_CONTEXT = (
    4096  # llama.cpp's; the K/V cache of a 32k context would take more memory than a small model
)


class SlowBackendWarning(UserWarning):
    """The reference backend runs because no faster one is there."""


class NoTemplateWarning(UserWarning):
    """A model without a chat template was asked to chat."""


class LLM:
    """An exported model, opened. Use as a context manager, or call `close`."""

    _kept: Kept | None = None
    artifact: Artifact | None = None  # what was opened; None for an LLM of parts, and once it is closed

    def __init__(self, path: str | Path, **options: Any) -> None:
        """`options` are BackendOptions (backend, device, threads, ctx, batch) and DraftOptions (draft,
        draft_rule).

        Raises ArtifactError, TokenizerError, BackendError, ResourceError or UsageError.
        """
        from flatlm.runtime.format.artifact import open_artifact

        names = [{item.name for item in fields(cls)} for cls in (BackendOptions, DraftOptions)]
        chosen = from_json(options, BackendOptions, ignore=names[1])
        drafting = from_json(options, DraftOptions, ignore=names[0])
        spec = None
        if drafting.draft != "off":
            from flatlm.kernels_arm.team import default_threads
            from flatlm.runtime.drafting.kept import Kept
            from flatlm.runtime.drafting.spec import build_speculator, parse_draft

            spec = parse_draft(drafting.draft)
        read_tokenizer = beside(lambda: load_tokenizer(path))  # most of it is not Python: a core of its own
        artifact = open_artifact(path)
        template = prompt.load_template(Path(artifact.path))
        backend, speculator, kept = open_chosen(artifact, chosen), None, None
        try:
            tokenizer = read_tokenizer()
            if spec is not None:
                threads = chosen.threads or default_threads()
                kept = Kept(f"{backend.name}, {chosen.device}, {threads} threads")
                speculator = build_speculator(
                    spec, artifact, tokenizer, lambda model: open_beside(backend, model, chosen), kept
                )
        except BaseException:
            backend.close()
            raise
        self._set(backend, tokenizer, template, speculator, drafting.draft_rule)
        self._kept, self.artifact = kept, artifact
        give_back()

    @classmethod
    def of(
        cls,
        backend: Backend,
        tokenizer: Tokenizer,
        template: str | None = None,
        speculator: Speculator | None = None,
        draft_rule: str = "invariant",
    ) -> LLM:
        """An LLM from its parts."""
        llm = cls.__new__(cls)
        llm._set(backend, tokenizer, template, speculator, draft_rule)
        return llm

    def _set(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        template: str | None,
        speculator: Speculator | None,
        draft_rule: str,
    ) -> None:
        self.backend, self.tokenizer, self.template = backend, tokenizer, template
        self.speculator, self._draft_rule = speculator, draft_rule
        self.batch = Batch(backend)
        self._current: Stream | Generator[tuple[int, Completion], None, None] | None = None

    def generate(self, text: str, **options: Any) -> Completion:
        """Continue `text` as it is, without a template. `options` are SamplingOptions: n, temp, stop …"""
        return self.stream(text, **options).run()

    def chat(self, messages: Sequence[prompt.Message], **options: Any) -> Completion:
        """Answer `messages` ({"role", "content"} objects) through the model's chat template."""
        return self.stream_chat(messages, **options).run()

    def stream(self, text: str, *, progress: Progress | None = None, **options: Any) -> Stream:
        """Like `generate`, as an iterator over pieces of text."""
        return self.stream_prompt(self.text_prompt(text, **options), progress)

    def stream_chat(
        self, messages: Sequence[prompt.Message], *, progress: Progress | None = None, **options: Any
    ) -> Stream:
        """Like `chat`, as an iterator over pieces of text."""
        return self.stream_prompt(self.chat_prompt(messages, **options), progress)

    def text_prompt(self, text: str, **options: Any) -> Prompt:
        """`text` to be continued as it is. `options` are SamplingOptions."""
        return Prompt(
            self.tokenizer.encode(text, most=self.backend.context),
            from_json(options, SamplingOptions),
            continues=True,
        )

    def chat_prompt(
        self,
        messages: Sequence[prompt.Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        prompt_style: str = "plain",
        re2: bool = False,
        reads: int = 2,
        **options: Any,
    ) -> Prompt:
        """`messages` to be answered. How the last one is put: PromptOptions; `options`: SamplingOptions."""
        put = prompt_styles.styled(messages, PromptOptions(prompt_style, re2, reads))
        return Prompt(self.chat_ids(put, tools), from_json(options, SamplingOptions))

    def chat_ids(
        self, messages: Sequence[prompt.Message], tools: Sequence[dict[str, Any]] | None = None
    ) -> list[int]:
        """The prompt for `messages` as ids. Without a template: plain text, and a NoTemplateWarning."""
        if self.template is None:
            warnings.warn(
                "the model has no chat template: it continues plain text", NoTemplateWarning, stacklevel=3
            )
            return self.tokenizer.encode(prompt.without_template(messages), most=self.backend.context)
        text = prompt.render(self.template, messages, special=self.tokenizer.special, tools=tools)
        return self.tokenizer.encode(text, special=False, most=self.backend.context)

    def stream_prompt(self, wanted: Prompt, progress: Progress | None = None) -> Stream:
        """The answer to a prompt as an iterator over pieces of text.

        Raises ContextError (with both numbers) before anything is computed.
        """
        engine.check_prompt(self.backend, wanted.ids)
        stream = Stream(self, wanted.seeded(), progress)
        self._begin(stream)
        return stream

    def answer_many(self, prompts: Iterable[Prompt]) -> Iterator[tuple[int, Completion]]:
        """(number of the prompt, its answer) as answers end, `batch` of them written side by side.

        Each is the answer it would be alone; nothing is drafted. Prompts are taken as there is room for them.
        Raises UsageError where another answer was begun meanwhile, which ends these.
        """
        answers = many.answer_many(self.batch, self.tokenizer, prompts, self.backend.slots)
        self._begin(answers)
        return self._all_of(answers)

    def _all_of(
        self, answers: Generator[tuple[int, Completion], None, None]
    ) -> Generator[tuple[int, Completion], None, None]:
        """`answers`, if nobody ends them: a loop over some of them would look like one over all."""
        yield from answers
        if self._current is not answers:
            raise UsageError(
                "another answer was begun while those of answer_many were being read, and ended them: "
                "read them all first, or open the model a second time"
            )

    def _begin(self, answers: Stream | Generator[tuple[int, Completion], None, None]) -> None:
        if self._current is not None:
            self._current.close()
        self._current = answers

    def close(self) -> None:
        """Free the memory of the model and its drafters: plan, caches and mapping.

        What is asked of it afterwards raises BackendError.
        """
        if self._current is not None:
            self._current.close()
            self._current = None
        self.backend.close()
        if self.speculator is not None:
            self.speculator.close()
            self.speculator = None
        if self._kept is not None:
            self._kept.write()
        self.artifact = None
        give_back()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream(Iterator[str]):
    """An answer as it is written: iterate for pieces of text; `completion` is what there is at any time."""

    def __init__(self, llm: LLM, wanted: Prompt, progress: Progress | None) -> None:
        self._llm, self._prompt = llm, wanted
        self._answer = AnswerText(llm.tokenizer, wanted)
        self._text: list[str] = []
        self._reason = "interrupted"
        self._ended = False
        self._timings = Timings(prompt_tokens=len(wanted.ids))
        self.source = ""  # the drafter whose token the last piece came with; empty: the model itself
        self._pieces = self._run(progress)

    def __next__(self) -> str:
        piece = next(self._pieces)
        self._text.append(piece)
        return piece

    def run(self) -> Completion:
        """Take all pieces and return the whole."""
        for _ in self:
            pass
        return self.completion

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """What the model was sent."""
        return tuple(self._prompt.ids)

    def close(self) -> None:
        """End the answer here; what was produced stays in `completion`."""
        self._pieces.close()

    @property
    def completion(self) -> Completion:
        """The answer so far; after an interrupt it includes text that was held back."""
        text = "".join(self._text)
        if not self._ended:
            text += self._answer.held
        seed = self._prompt.options.seed
        return Completion(text, tuple(self._answer.tokens), self._reason, self._timings, seed)

    def _run(self, progress: Progress | None) -> Generator[str, None, None]:
        llm, options = self._llm, self._prompt.options
        sampler = make_sampler(options)
        if llm.speculator is not None:
            llm.speculator.begin(draft_rule(llm._draft_rule, sampler, options))
        ids = engine.generate(
            llm.backend,
            self._prompt.ids,
            sampler,
            options.n,
            llm.tokenizer.eos_ids,
            held=llm.batch.held[0],
            progress=progress,
            on_reuse=lambda count: self._count(reused_tokens=count),
            speculator=llm.speculator,
        )
        for number in self._timed(ids):
            if piece := self._answer.push(number):
                yield piece
            if self._answer.stopped:
                break
        self._reason = "stop" if self._answer.stopped else "length"
        if piece := self._answer.finish():
            yield piece
        self._ended = True

    def _timed(self, ids: Iterator[int]) -> Iterator[int]:
        """Pass `ids` on, counting the time each took; the reader's own time between two is not ours."""
        while True:
            started = time.perf_counter()
            number = next(ids, None)
            if number is None:
                return
            seconds, times = time.perf_counter() - started, self._timings
            if times.generated_tokens == 0:
                self._count(generated_tokens=1, prefill_seconds=seconds)
            else:
                total = times.decode_seconds + seconds
                self._count(generated_tokens=times.generated_tokens + 1, decode_seconds=total)
            if self._llm.speculator is not None:
                self.source = self._llm.speculator.source_of(times.generated_tokens)
                self._count(drafting=self._llm.speculator.timings())
            yield number

    def _count(self, **changes: Any) -> None:
        self._timings = replace(self._timings, **changes)


def draft_rule(name: str, sampler: Sampler, options: SamplingOptions) -> Rule:
    """The rule of DraftOptions by its name, for one answer."""
    if name == "invariant":
        return invariant(sampler)
    return rejection(options, np.random.Generator(np.random.PCG64(options.seed)))


def open_beside(target: Backend, model: Artifact, options: BackendOptions) -> Backend:
    """A model that drafts for `target`: on the same kind of backend, with as much context as both have.

    Native ones get a short head.
    """
    same = replace(options, ctx=min(target.context, model.manifest.context_length), batch=1)
    if target.name != "native":
        return open_named(target.name, model, same)
    from flatlm.runtime.drafting.short_head import with_short_head

    return with_short_head(model, lambda short: open_named(target.name, short, same))


def open_chosen(artifact: Artifact, options: BackendOptions) -> Backend:
    """The backend of `options`; auto is native where it opens, else numpy with a SlowBackendWarning."""
    if options.backend != "auto":
        return open_named(options.backend, artifact, options)
    if options.device != "cpu":
        return open_named("ort", artifact, options)
    try:
        return open_named("native", artifact, options)
    except BackendError as error:
        warnings.warn(
            f"the native backend cannot run here ({error}). Using numpy, the reference, 10 to 100 times "
            "slower: expect seconds per token. `flatlm doctor` says what is missing",
            SlowBackendWarning,
            stacklevel=2,
        )
        return open_named("numpy", artifact, options)


def open_named(name: str, artifact: Artifact, options: BackendOptions) -> Backend:
    """The backend `name` as `options` say; BackendError, ContextError, ResourceError."""
    from flatlm.runtime.backends import open_backend

    most = artifact.manifest.context_length
    if options.ctx is not None and options.ctx > most:
        raise ContextError(f"--ctx {options.ctx} is more than the model was made for, {most} tokens")
    context = options.ctx or min(most, DEFAULT_CONTEXT)
    return open_backend(
        name,
        artifact,
        threads=options.threads,
        context=context,
        device=options.device,
        slots=options.batch,
    )
