"""A backend by what the user chose: its name or the best there is, and how wide it is opened."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

from flatlm.runtime.errors import BackendError, ContextError
from flatlm.runtime.options import BackendOptions

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend
    from flatlm.runtime.format.artifact import Artifact

DEFAULT_CONTEXT = (
    4096  # llama.cpp's; the K/V cache of a 32k context would take more memory than a small model
)


class SlowBackendWarning(UserWarning):
    """The reference backend runs because no faster one is there."""


def open_chosen(artifact: Artifact, options: BackendOptions) -> Backend:
    """The backend of `options`; auto is native where it opens, else numpy with a SlowBackendWarning."""
    if options.backend != "auto":
        return open_named(options.backend, artifact, options)
    if options.device != "cpu" or options.fast:
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
        raise ContextError(
            f"--ctx {options.ctx} is more than the model was made for, {most} tokens", param="ctx"
        )
    return open_backend(name, artifact, replace(options, ctx=options.ctx or min(most, DEFAULT_CONTEXT)))
