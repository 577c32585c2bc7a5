"""The class users meet: text in, text out, over the scheduler, the tokenizer and the template.

    with LLM("smollm2-edge") as llm:
        for piece in llm.stream_chat([{"role": "user", "content": "What is the capital of France?"}]):
            print(piece, end="", flush=True)

An answer is a `Stream`, and the calls that return a `Completion` run one to its end; `answer_many` writes
several side by side. A new answer ends those before it. One thread owns an LLM: only `Stream.cancel` may be
called from others. `astream` and `astream_chat` are for programs with an event loop, which they never block.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatlm.runtime.backends import check_prompt
from flatlm.runtime.backends.opening import open_chosen
from flatlm.runtime.background import in_background
from flatlm.runtime.errors import UsageError
from flatlm.runtime.generation.answer import Completion, Prompt
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.generation.stream import Check, Stream, answer_many, superseded
from flatlm.runtime.memory import give_back
from flatlm.runtime.options import BackendOptions, DraftOptions, PromptOptions, SamplingOptions, from_json
from flatlm.runtime.progress import Progress
from flatlm.runtime.text import prompt, prompt_styles
from flatlm.runtime.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from flatlm.runtime.backends import Backend
    from flatlm.runtime.drafting.kept import Kept
    from flatlm.runtime.drafting.speculator import Speculator
    from flatlm.runtime.format.artifact import Artifact
    from flatlm.runtime.generation.astream import AsyncStream


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
            from flatlm.runtime.drafting.spec import build_speculator, open_beside, parse_draft

            spec = parse_draft(drafting.draft)
        read_tokenizer = in_background(
            lambda: load_tokenizer(path)
        )  # most of it is not Python: a core of its own
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
        self.speculator = speculator
        self._scheduler = Scheduler(backend, tokenizer, speculator, draft_rule)
        self._newest = 0  # counts what was begun
        self._closed = False
        self._worker: ThreadPoolExecutor | None = None  # what astream runs on

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

    def astream(self, text: str, *, progress: Progress | None = None, **options: Any) -> AsyncStream:
        """Like `stream`, to be read with `async for`."""
        return self._astream_prompt(self.text_prompt(text, **options), progress)

    def astream_chat(
        self, messages: Sequence[prompt.Message], *, progress: Progress | None = None, **options: Any
    ) -> AsyncStream:
        """Like `stream_chat`, to be read with `async for`."""
        return self._astream_prompt(self.chat_prompt(messages, **options), progress)

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
        check = self._begin(wanted)
        return Stream(self._scheduler, self._scheduler.submit(wanted, progress), check)

    def _astream_prompt(self, wanted: Prompt, progress: Progress | None) -> AsyncStream:
        from flatlm.runtime.generation.astream import AsyncStream, one_thread  # asyncio takes long to import

        self._open()
        self._worker = self._worker or one_thread()
        return AsyncStream(lambda: self.stream_prompt(wanted, progress), self._worker)

    def answer_many(self, prompts: Iterable[Prompt]) -> Iterator[tuple[int, Completion]]:
        """(number of the prompt, its answer) as answers end, `batch` of them written side by side.

        Each is the answer it would be alone. Prompts are taken as there is room for them. Raises UsageError
        where another answer was begun meanwhile, which ends these.
        """
        return answer_many(self._scheduler, prompts, self.backend.slots, self._begin())

    def _begin(self, wanted: Prompt | None = None) -> Check:
        """Make room for `wanted`, or for many: what was begun before ends. Returns what tells whether that
        has happened to the new one.
        """
        self._open()
        if wanted is not None:
            check_prompt(self.backend, wanted.ids)  # or what was begun goes on
        self._scheduler.clear()
        self._newest = number = self._newest + 1

        def check() -> None:
            self._open()
            if self._newest != number:
                raise superseded()

        return check

    def _open(self) -> None:
        if self._closed:
            raise UsageError("the LLM is closed: open the model again")

    def close(self) -> None:
        """Free the memory of the model and its drafters: plan, caches and mapping. No use after."""
        if self._closed:
            return
        self._scheduler.clear()
        self._closed = True
        if self._worker is not None:
            self._worker.shutdown(wait=False)
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
