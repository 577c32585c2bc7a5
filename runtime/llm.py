"""The class users meet: text in, text out, over the engine, the tokenizer, the template and a sampler.

    with LLM("smollm2-edge") as llm:
        for piece in llm.stream_chat([{"role": "user", "content": "What is the capital of France?"}]):
            print(piece, end="", flush=True)

There is one path: an answer is a `Stream`, and the calls that return a `Completion` run one to its end. One
thread owns an LLM; a new answer ends the one before it.
"""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime import engine, prompt, prompt_styles
from runtime.drafting.spec import build_speculator, parse_draft
from runtime.drafting.speculator import DraftTimings, Speculator
from runtime.drafting.verify import Rule, invariant, rejection
from runtime.errors import BackendError, ContextError
from runtime.options import BackendOptions, DraftOptions, PromptOptions, SamplingOptions, from_json
from runtime.progress import Progress
from runtime.sampler import Sampler, make_sampler
from runtime.stop_text import StopText
from runtime.tokenizer import Detokenizer, Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from runtime.artifact import Artifact
    from runtime.backends import Backend


DEFAULT_CONTEXT = (
    4096  # llama.cpp's; the K/V cache of a 32k context would take more memory than a small model
)


class SlowBackendWarning(UserWarning):
    """The reference backend runs because no faster one is there."""


class NoTemplateWarning(UserWarning):
    """A model without a chat template was asked to chat."""


@dataclass(frozen=True)
class Timings:
    """What an answer cost. Prefill is the time to the first token; decode that from the first to the last."""

    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, still held from the answer before
    prefill_seconds: float = 0.0
    generated_tokens: int = 0  # with the token that ended the answer
    decode_seconds: float = 0.0
    drafting: DraftTimings | None = None  # None: plain decoding

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens read per second."""
        return _rate(self.prompt_tokens - self.reused_tokens, self.prefill_seconds)

    @property
    def decode_rate(self) -> float:
        """Tokens written per second; the first one belongs to the prefill."""
        return _rate(self.generated_tokens - 1, self.decode_seconds)


@dataclass(frozen=True)
class Completion:
    """An answer. `finish_reason`: stop (end token or stop text), length (n or context), interrupted."""

    text: str
    tokens: tuple[int, ...]  # without the token that ended it
    finish_reason: str
    timings: Timings
    seed: int


class LLM:
    """An exported model, opened. Use as a context manager, or call `close`."""

    def __init__(self, path: str | Path, **options: Any) -> None:
        """`options` are BackendOptions (backend, device, threads, ctx) and DraftOptions (draft, draft_rule).

        Raises ArtifactError, TokenizerError, BackendError, ResourceError or UsageError.
        """
        from runtime.artifact import open_artifact

        names = [{item.name for item in fields(cls)} for cls in (BackendOptions, DraftOptions)]
        chosen = from_json(options, BackendOptions, ignore=names[1])
        drafting = from_json(options, DraftOptions, ignore=names[0])
        spec = parse_draft(drafting.draft)
        artifact = open_artifact(path)
        folder = Path(artifact.path)
        tokenizer, template = load_tokenizer(folder), prompt.load_template(folder)
        backend = open_chosen(artifact, chosen)
        speculator = None
        if spec is not None:
            try:
                speculator = build_speculator(
                    spec, artifact, tokenizer, lambda drafter: open_beside(backend, drafter, chosen)
                )
            except BaseException:
                backend.close()
                raise
        self._set(backend, tokenizer, template, speculator, drafting.draft_rule)

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
        self._held: list[int] = []  # the ids the backend's sequence consists of
        self._current: Stream | None = None

    def generate(self, text: str, **options: Any) -> Completion:
        """Continue `text` as it is, without a template. `options` are SamplingOptions: n, temp, stop …"""
        return self.stream(text, **options).run()

    def chat(self, messages: Sequence[prompt.Message], **options: Any) -> Completion:
        """Answer `messages` ({"role", "content"} objects) through the model's chat template."""
        return self.stream_chat(messages, **options).run()

    def stream(self, text: str, *, progress: Progress | None = None, **options: Any) -> Stream:
        """Like `generate`, as an iterator over pieces of text."""
        ids = self.tokenizer.encode(text)
        return self.stream_ids(ids, from_json(options, SamplingOptions), continues=True, progress=progress)

    def stream_chat(
        self,
        messages: Sequence[prompt.Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        prompt_style: str = "plain",
        re2: bool = False,
        reads: int = 2,
        progress: Progress | None = None,
        **options: Any,
    ) -> Stream:
        """Like `chat`, as an iterator over pieces of text. How the last message is put: PromptOptions."""
        put = prompt_styles.styled(messages, PromptOptions(prompt_style, re2, reads))
        ids = self.chat_ids(put, tools)
        return self.stream_ids(ids, from_json(options, SamplingOptions), progress=progress)

    def chat_ids(
        self, messages: Sequence[prompt.Message], tools: Sequence[dict[str, Any]] | None = None
    ) -> list[int]:
        """The prompt for `messages` as ids. Without a template: plain text, and a NoTemplateWarning."""
        if self.template is None:
            warnings.warn(
                "the model has no chat template: it continues plain text", NoTemplateWarning, stacklevel=3
            )
            return self.tokenizer.encode(prompt.without_template(messages))
        text = prompt.render(self.template, messages, special=self.tokenizer.special, tools=tools)
        return self.tokenizer.encode(text, special=False)

    def stream_ids(
        self,
        ids: Sequence[int],
        options: SamplingOptions,
        *,
        continues: bool = False,
        progress: Progress | None = None,
    ) -> Stream:
        """The answer to a prompt of ids. `continues`: its text goes on where the prompt's ends, space too.

        Raises ContextError (with both numbers) before anything is computed.
        """
        engine.check_prompt(self.backend, ids)
        if self._current is not None:
            self._current.close()
        if options.seed < 0:
            options = replace(options, seed=secrets.randbits(32))
        self._current = Stream(self, list(ids), options, continues, progress)
        return self._current

    def close(self) -> None:
        """Free the memory of the model and its drafters. The LLM cannot be used after."""
        self.backend.close()
        if self.speculator is not None:
            self.speculator.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream(Iterator[str]):
    """An answer as it is written: iterate for pieces of text; `completion` is what there is at any time."""

    def __init__(
        self, llm: LLM, ids: list[int], options: SamplingOptions, continues: bool, progress: Progress | None
    ) -> None:
        self._llm, self._prompt, self._options = llm, ids, options
        self._detokenizer = Detokenizer(llm.tokenizer, ids[-16:] if continues else ())
        self._stop_text = StopText(options.stop)
        self._tokens: list[int] = []
        self._text: list[str] = []
        self._reason = "interrupted"
        self._ended = False
        self._timings = Timings(prompt_tokens=len(ids))
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
        return tuple(self._prompt)

    def close(self) -> None:
        """End the answer here; what was produced stays in `completion`."""
        self._pieces.close()

    @property
    def completion(self) -> Completion:
        """The answer so far; after an interrupt it includes text that was held back."""
        text = "".join(self._text)
        if not self._ended:
            text += self._stop_text.held
        return Completion(text, tuple(self._tokens), self._reason, self._timings, self._options.seed)

    def _run(self, progress: Progress | None) -> Generator[str, None, None]:
        llm, stop_ids = self._llm, self._llm.tokenizer.eos_ids
        sampler = make_sampler(self._options)
        if llm.speculator is not None:
            llm.speculator.begin(draft_rule(llm._draft_rule, sampler, self._options))
        ids = engine.generate(
            llm.backend,
            self._prompt,
            sampler,
            self._options.n,
            stop_ids,
            held=llm._held,
            progress=progress,
            on_reuse=lambda count: self._count(reused_tokens=count),
            speculator=llm.speculator,
        )
        for number in self._timed(ids):
            if number in stop_ids:
                self._reason = "stop"
                break
            self._tokens.append(number)
            piece = self._stop_text.push(self._detokenizer.push(number))
            if piece:
                yield piece
            if self._stop_text.found:
                self._reason = "stop"
                break
        else:
            self._reason = "length"
        yield from self._rest()
        self._ended = True

    def _rest(self) -> Iterator[str]:
        if not self._stop_text.found:
            piece = self._stop_text.push(self._detokenizer.finish()) + self._stop_text.finish()
            if piece:
                yield piece

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


def open_beside(target: Backend, drafter: Path, options: BackendOptions) -> Backend:
    """A model that drafts for `target`: on the same kind of backend, with as much context as both have."""
    from runtime.artifact import open_artifact

    artifact = open_artifact(drafter)
    context = min(target.context, artifact.manifest.context_length)
    return open_named(target.name, artifact, replace(options, ctx=context))


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
    """The backend `name` with threads, context and device of `options`; BackendError, ContextError."""
    from runtime.backends import open_backend

    most = artifact.manifest.context_length
    if options.ctx is not None and options.ctx > most:
        raise ContextError(f"--ctx {options.ctx} is more than the model was made for, {most} tokens")
    context = options.ctx or min(most, DEFAULT_CONTEXT)
    return open_backend(name, artifact, threads=options.threads, context=context, device=options.device)


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 and tokens > 0 else 0.0
