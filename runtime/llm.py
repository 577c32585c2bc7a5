"""The class users meet: text in, text out, over the scheduler, the tokenizer and the template.

    with LLM("smollm2-edge") as llm:
        print(llm.chat("What is the capital of France?").text)
        for piece in llm.stream_chat([{"role": "user", "content": "And of Norway?"}], temperature=0.7):
            print(piece, end="", flush=True)

An answer is a `Stream`, and the calls that return a `Completion` run one to its end; `answer_many` writes
several side by side. A new answer ends those before it. One thread owns an LLM: only `Stream.cancel` may be
called from others. `astream` and `astream_chat` are for programs with an event loop, which they never block.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flatlm.runtime import embedding, names
from flatlm.runtime.backends import check_prompt
from flatlm.runtime.backends.opening import open_chosen, open_named
from flatlm.runtime.background import in_background
from flatlm.runtime.errors import BackendError, UsageError
from flatlm.runtime.generation.answer import Completion, Prompt
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.generation.stream import Check, Stream, answer_many, superseded
from flatlm.runtime.grammars import grammar_of
from flatlm.runtime.memory import give_back
from flatlm.runtime.options import BackendOptions, DraftOptions, PromptOptions, SamplingOptions, of_call
from flatlm.runtime.progress import Progress
from flatlm.runtime.text import prompt, prompt_styles
from flatlm.runtime.text.tokenizer import Tokenizer, load_tokenizer
from flatlm.runtime.text.tools.put import reading_of, told
from flatlm.runtime.text.tools.request import Tooling, conversation, tooling_of

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from typing_extensions import Unpack

    from flatlm.runtime.backends import Backend
    from flatlm.runtime.drafting.kept import Kept
    from flatlm.runtime.drafting.speculator import Speculator
    from flatlm.runtime.format.artifact import Artifact
    from flatlm.runtime.generation.astream import AsyncStream
    from flatlm.runtime.keywords import ChatKeywords, OpenKeywords, SamplingKeywords

Messages = str | Sequence[prompt.Message]  # a text is one user's message

TOOLING = ("tools", "tool_choice", "parallel_tool_calls")


class NoTemplateWarning(UserWarning):
    """A model without a chat template was asked to chat."""


class LLM:
    """An exported model, opened. Use as a context manager, or call `close`."""

    speculator: Speculator | None = None
    _kept: Kept | None = None
    artifact: Artifact | None = None  # what was opened; None for an LLM of parts, and once it is closed

    def __init__(
        self, path: str | Path, *given: BackendOptions | DraftOptions, **options: Unpack[OpenKeywords]
    ) -> None:
        """`path`: the artifact's folder, or its name in the models' folder (`flatlm list`).

        The options are those of BackendOptions (backend, device, threads, ctx, batch) and DraftOptions
        (draft, draft_rule): as such objects, as keywords, or both, where a keyword counts.

        Raises ArtifactError, TokenizerError, BackendError, ResourceError or UsageError.
        """
        from flatlm.runtime.format.artifact import open_artifact

        path = names.resolve(path)
        self._options = chosen = of_call(BackendOptions, given, options, DraftOptions)
        drafting = of_call(DraftOptions, given, options, BackendOptions)
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
        self.template = prompt.load_template(Path(artifact.path))
        self.backend = backend = open_chosen(artifact, chosen)
        try:
            self.tokenizer = read_tokenizer()
            if spec is not None:
                threads = chosen.threads or default_threads()
                self._kept = Kept(f"{backend.name}, {chosen.device}, {threads} threads")
                self.speculator = build_speculator(
                    spec, artifact, self.tokenizer, lambda one: open_beside(backend, one, chosen), self._kept
                )
        except BaseException:
            backend.close()
            raise
        self.artifact = artifact
        self._begin_with(drafting.draft_rule)
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
        llm.backend, llm.tokenizer, llm.template = backend, tokenizer, template
        llm.speculator = speculator
        llm._begin_with(draft_rule)
        return llm

    def _begin_with(self, draft_rule: str) -> None:
        self._scheduler = Scheduler(self.backend, self.tokenizer, self.speculator, draft_rule)
        self._newest = 0  # counts what was begun
        self._closed = False
        self._worker: ThreadPoolExecutor | None = None  # what astream runs on

    def generate(self, text: str, *given: SamplingOptions, **options: Unpack[SamplingKeywords]) -> Completion:
        """Continue `text` as it is, without a template. The options are those of SamplingOptions (n, temp,
        stop …), as an object or as keywords; `max_tokens` and `temperature` are `n` and `temp`.
        """
        return self.stream(text, *given, **options).run()

    def chat(
        self, messages: Messages, *given: SamplingOptions | PromptOptions, **options: Unpack[ChatKeywords]
    ) -> Completion:
        """Answer `messages` through the model's chat template: {"role", "content"} objects, or a user's text.

        Options as of `generate` and of PromptOptions, and `tools` as of `chat_prompt`: what is called is in
        `tool_calls` of the Completion.
        """
        return self.stream_chat(messages, *given, **options).run()

    def stream(
        self,
        text: str,
        *given: SamplingOptions,
        progress: Progress | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> Stream:
        """Like `generate`, as an iterator over pieces of text."""
        return self.stream_prompt(self.text_prompt(text, *given, **options), progress)

    def stream_chat(
        self,
        messages: Messages,
        *given: SamplingOptions | PromptOptions,
        progress: Progress | None = None,
        **options: Unpack[ChatKeywords],
    ) -> Stream:
        """Like `chat`, as an iterator over pieces of text."""
        return self.stream_prompt(self.chat_prompt(messages, *given, **options), progress)

    def astream(
        self,
        text: str,
        *given: SamplingOptions,
        progress: Progress | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> AsyncStream:
        """Like `stream`, to be read with `async for`."""
        return self._astream_prompt(self.text_prompt(text, *given, **options), progress)

    def astream_chat(
        self,
        messages: Messages,
        *given: SamplingOptions | PromptOptions,
        progress: Progress | None = None,
        **options: Unpack[ChatKeywords],
    ) -> AsyncStream:
        """Like `stream_chat`, to be read with `async for`."""
        return self._astream_prompt(self.chat_prompt(messages, *given, **options), progress)

    def text_prompt(self, text: str, *given: SamplingOptions, **options: Unpack[SamplingKeywords]) -> Prompt:
        """`text` to be continued as it is."""
        ids = self.tokenizer.encode(text, most=self.backend.context)
        return Prompt(ids, of_call(SamplingOptions, given, options), continues=True)

    def chat_prompt(
        self, messages: Messages, *given: SamplingOptions | PromptOptions, **options: Unpack[ChatKeywords]
    ) -> Prompt:
        """`messages` to be answered: objects with role and content, or the text of one user. How the last one
        is put, PromptOptions say.

        `tools` are OpenAI's, `tool_choice` is auto, none, required or the name of one. Where a call must be,
        or may be and the model's way to write calls is known, its arguments are held to their schema.
        """
        tooling = tooling_of(
            options.get("tools"), options.get("tool_choice"), options.get("parallel_tool_calls")
        )
        others = {name: value for name, value in options.items() if name not in TOOLING}
        sampling = of_call(SamplingOptions, given, others, PromptOptions)
        prompting = of_call(PromptOptions, given, others, SamplingOptions)
        put = prompt_styles.styled(conversation(messages), prompting)
        text = self.chat_text(put, tooling)
        free = grammar_of(sampling) is None
        reading, grammar = reading_of(self.template, text, tooling, self.tokenizer, free)
        if grammar is not None:
            sampling = replace(sampling, grammar=grammar)
        ids = self.tokenizer.encode(text, special=self.template is None, most=self.backend.context)
        return Prompt(ids, sampling, reading=reading)

    def chat_text(self, messages: Sequence[prompt.Message], tooling: Tooling | None = None) -> str:
        """The prompt for `messages` as text. Without a template: plain text, and a NoTemplateWarning."""
        put, tools = told(self.template, messages, tooling)
        if self.template is None:
            warnings.warn(
                "the model has no chat template: it continues plain text", NoTemplateWarning, stacklevel=4
            )
            return prompt.without_template(put)
        return prompt.render(self.template, put, special=self.tokenizer.special, tools=tools)

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """The ids of `text`; with `special` as a prompt has them, with the begin token if there is one."""
        if not isinstance(text, str):
            raise UsageError(f"a text is needed, not {text!r:.80}", param="text")
        return self.tokenizer.encode(text, special)

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of `ids`; with `special` that of special tokens too."""
        return self.tokenizer.decode(ids, skip_special=not special)

    def count_tokens(self, messages: Messages, **options: Unpack[ChatKeywords]) -> int:
        """How many tokens `chat` would read of this: messages, or a user's text, in the chat template."""
        return len(self.chat_prompt(messages, **options).ids)

    def embed(self, texts: str | Sequence[str], pooling: str = "mean", normalize: bool = True) -> np.ndarray:
        """Vectors of texts, float32 [width] of one, [texts, width] of several: the mean of the last hidden
        states of a text's tokens, or by `pooling="last"` that of its last token; of length 1 if `normalize`.

        `batch` texts are computed side by side, each as it would be alone. BackendError where the backend
        cannot.
        """
        self._open()
        given = [texts] if isinstance(texts, str) else texts
        ids = [self.tokenizer.encode(text, most=self.backend.context) for text in given]
        vectors = embedding.embed(self._without_head, ids, pooling, normalize)
        return vectors[0] if isinstance(texts, str) else vectors

    @functools.cached_property
    def _without_head(self) -> Backend:
        """The same model once more, with hidden states in the place of logits; the weights are shared."""
        if self.artifact is None or self.backend.name not in embedding.ABLE:
            raise BackendError(f"vectors of texts need one of the backends {', '.join(embedding.ABLE)}")
        model = replace(self.artifact, graph=embedding.headless(self.artifact.graph))
        options = replace(self._options, ctx=self.backend.context, batch=self.backend.slots)
        return open_named(self.backend.name, model, options)

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

    @property
    def scheduler(self) -> Scheduler:
        """What writes the answers, for a program that turns its steps itself, as `flatlm serve` does: that
        one thread then owns the LLM and calls nothing else of it that answers.
        """
        return self._scheduler

    def several(self, wanted: Prompt, count: int) -> list[Completion]:
        """`count` answers to one prompt, their seeds one after the other; it is read once.

        As many as the model has sequences (`batch`) are written side by side.
        """
        found = dict(self.answer_many(wanted.several(count)))
        return [found[number] for number in range(count)]

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
        if "_without_head" in self.__dict__:
            self._without_head.close()
        if self.speculator is not None:
            self.speculator.close()
            self.speculator = None
        if self._kept is not None:
            self._kept.write()
        self.artifact = None
        give_back()

    def __repr__(self) -> str:
        if self._closed:
            return "LLM(closed)"
        name = "of parts" if self.artifact is None else repr(self.artifact.manifest.name)
        return f"LLM({name}, {self.backend.name}, context {self.backend.context}, batch {self.backend.slots})"

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
