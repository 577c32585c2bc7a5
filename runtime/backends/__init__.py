"""The plug point for what computes the logits: one protocol, one table, one file a backend."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from flatlm.runtime.errors import BackendError, ContextError, TokenizerError, UsageError
from flatlm.runtime.format.artifact import Artifact
from flatlm.runtime.options import BackendOptions


class Segment(NamedTuple):
    """Tokens that are appended to one sequence, and how many of the last rows of logits are wanted."""

    slot: int
    ids: Sequence[int] | np.ndarray
    logits: int = 1


class Backend(Protocol):
    """`slots` sequences, each with its states. Built as Class(artifact, threads=, context=, device=,
    slots=).

    What is asked without a slot concerns sequence 0: who has one sequence need not know of others. A row of
    logits depends on its own sequence alone, to the last bit, whatever else is computed beside it.
    """

    name: str
    context: int  # most tokens a sequence holds
    vocab: int
    slots: int

    @property
    def position(self) -> int:
        """Tokens that sequence 0 holds."""
        ...

    @property
    def positions(self) -> Sequence[int]:
        """Tokens that each sequence holds."""
        ...

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        """Appends ids int [m]; returns float32 [min(logits, m), vocab] of the last positions.

        ContextError if position + m > context; nothing is appended then.
        """
        ...

    def forward_many(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """The same for several sequences in one step, each at most once; logits by segment.

        ContextError if one does not fit; then nothing is appended to any.
        """
        ...

    def truncate(self, length: int, slot: int = 0) -> int:
        """Forgets what a sequence holds after its first `length` tokens; returns how many it then holds.

        That is `length`, or all that there were if they are fewer. A model whose state cannot be cut back to
        just there holds fewer afterwards, 0 at worst: what is missing must be read again.
        """
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Sequence `target` becomes the first `length` tokens of sequence `source`."""
        ...

    def close(self) -> None:
        """Frees threads, caches and all that was made of the graph; `forward` and `copy` then raise
        BackendError.

        The mapped weights are freed with the last that holds the graph.
        """
        ...


T = TypeVar("T")


def still_open(parts: T | None) -> T:
    """What a backend runs with, which closing it makes None or empty; BackendError after that."""
    if not parts:
        raise BackendError("the model was closed and its memory freed: open it again")
    return parts


def check_ids(vocab: int, segments: Sequence[Segment]) -> None:
    """BackendError where a token id is no row of the embedding."""
    for ids in (np.asarray(segment.ids) for segment in segments):
        if ids.size and not (ids.min() >= 0 and ids.max() < vocab):
            raise BackendError(f"token ids must lie in 0 … {vocab - 1}, got {ids.min()} … {ids.max()}")


def check_fit(positions: Sequence[int], context: int, segments: Sequence[Segment]) -> None:
    """ContextError where a segment is longer than what is left of the context of its sequence."""
    for segment in segments:
        held, more = positions[segment.slot], len(segment.ids)
        if held + more > context:
            raise ContextError(f"{held} + {more} tokens do not fit the context of {context}")


def check_prompt(backend: Backend, ids: Sequence[int], more: int = 0) -> None:
    """Raise where `ids`, and `more` after them, cannot be read by `backend`."""
    if len(ids) == 0:
        raise UsageError("the prompt is empty: give at least one token to continue", param="prompt")
    length = len(ids) + more
    if length > backend.context:
        raise ContextError(
            f"the prompt is {length} tokens long, the context holds {backend.context}: shorten it "
            "or raise --ctx",
            param="prompt",
        )
    if max(ids) >= backend.vocab:
        raise TokenizerError(
            f"the tokenizer gives the id {max(ids)}, the model has {backend.vocab}: they do not belong "
            "together; export the model again"
        )


BACKENDS = {
    "native": "flatlm.runtime.backends.native:NativeBackend",
    "numpy": "flatlm.runtime.backends.numpy:NumpyBackend",
    "ort": "flatlm.runtime.backends.onnx_plan.opening:open_ort",
    "ort-file": "flatlm.runtime.backends.ort:OrtBackend",
}


def open_backend(name: str, artifact: Artifact, options: BackendOptions | None = None) -> Backend:
    """The backend `name` on `artifact`, whatever backend `options` name, for `options.batch` sequences at
    once. `threads` and `ctx` None mean the backend's and the model's own.

    BackendError for an unknown name, a device it does not have, or an optional package that is missing.
    """
    if name not in BACKENDS:
        near = difflib.get_close_matches(name, BACKENDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(BACKENDS)}"
        raise BackendError(f"unknown backend {name!r}; {hint}")
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        backend_class: Callable[..., Backend] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "flatlm":
            raise  # our own bug
        raise BackendError(
            f"the backend {name!r} needs the package {error.name}; install it and try again"
        ) from error
    chosen = options or BackendOptions()
    if chosen.fast and name != "ort":
        raise BackendError(f"the backend {name!r} has no --fast, only 'ort' has")
    more = {"fast": True} if chosen.fast else {}
    return backend_class(
        artifact, threads=chosen.threads, context=chosen.ctx, device=chosen.device, slots=chosen.batch, **more
    )
