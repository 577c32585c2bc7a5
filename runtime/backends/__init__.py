"""The plug point for what computes the logits: one protocol, one table, one file a backend."""

from __future__ import annotations

import difflib
import importlib
from typing import Protocol

import numpy as np

from runtime.artifact import Artifact
from runtime.errors import BackendError


class Backend(Protocol):
    """One sequence and its K/V cache. Built as Class(artifact, threads=, context=, device=)."""

    name: str
    context: int  # most tokens the cache holds
    vocab: int

    @property
    def position(self) -> int:
        """Tokens held in the cache."""
        ...

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        """Appends ids int [m]; returns float32 [min(logits, m), vocab] of the last positions.

        ContextError if position + m > context; nothing is appended then.
        """
        ...

    def truncate(self, length: int) -> None:
        """Forgets everything after the first `length` tokens."""
        ...

    def close(self) -> None: ...


BACKENDS = {
    "native": "runtime.backends.native:NativeBackend",
    "numpy": "runtime.backends.numpy:NumpyBackend",
    "ort": "runtime.backends.ort:OrtBackend",
}


def open_backend(
    name: str,
    artifact: Artifact,
    *,
    threads: int | None = None,
    context: int | None = None,
    device: str = "cpu",
) -> Backend:
    """The backend `name` on `artifact`; `threads` and `context` None mean the backend's and the model's own.

    BackendError for an unknown name, a device it does not have, or an optional package that is missing.
    """
    if name not in BACKENDS:
        near = difflib.get_close_matches(name, BACKENDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(BACKENDS)}"
        raise BackendError(f"unknown backend {name!r}; {hint}")
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        backend_class = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("runtime", "kernels_arm"):
            raise  # our own bug
        raise BackendError(
            f"the backend {name!r} needs the package {error.name}; install it and try again"
        ) from error
    return backend_class(artifact, threads=threads, context=context, device=device)
