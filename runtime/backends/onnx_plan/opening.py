"""Opens the ort backend: the plan where a model has one, else the file as it stands."""

from __future__ import annotations

import warnings

from flatlm.runtime.backends import Backend
from flatlm.runtime.backends.ort import PART, OrtBackend
from flatlm.runtime.backends.ort_session import import_onnxruntime
from flatlm.runtime.errors import BackendError
from flatlm.runtime.format.artifact import Artifact


class PlainFileWarning(UserWarning):
    """A model's file runs as it stands on CUDA, which is slow."""


def open_ort(
    artifact: Artifact,
    *,
    threads: int | None = None,
    context: int | None = None,
    device: str = "cpu",
    slots: int = 1,
    fast: bool = False,
) -> Backend:
    """The model's plan; the file as it stands where the plan refuses it, with a warning if that is slow.

    BackendError where the device or a package is missing, or where `fast` has no plan.
    """
    if artifact.graph.part:
        raise BackendError(PART.format(artifact.graph.part))
    import_onnxruntime()
    try:
        from .backend import open_plan
        from .functions import Refused
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        reason = "it needs the package onnx: pip install 'flatlm[ort]' or 'flatlm[gpu]'"
    else:
        try:
            return open_plan(
                artifact, threads=threads, context=context, device=device, slots=slots, fast=fast
            )
        except Refused as error:
            reason = str(error)
    if fast:
        raise BackendError(f"--fast needs the plan of the model, and there is none: {reason}")
    if device != "cpu":
        warnings.warn(
            f"the file runs as it stands, whose K/V cache is copied at every step: {reason}",
            PlainFileWarning,
            stacklevel=2,
        )
    return OrtBackend(artifact, threads=threads, context=context, device=device, slots=slots)
