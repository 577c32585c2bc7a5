"""Sessions of onnxruntime: the module without telemetry, CUDA's libraries, options, errors that advise."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from flatlm.runtime.errors import BackendError, FormatError

# Newer ones keep a number of this device and send events of what they do, unless it is set before the import
TELEMETRY = "ORT_DISABLE_TELEMETRY"

PROVIDERS = {
    "cpu": ("CPUExecutionProvider", {}),
    # tf32 keeps 10 bits of a product's operands; the float parts of this model are meant as float32. The
    # arena would else grow by powers of two: 2,157 instead of 1,107 MB for SmolLM2-135M
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}),
}
ADVICE = "onnxruntime-gpu in the place of onnxruntime, with the CUDA it loads, is: pip install 'flatlm[gpu]'"

# Since 1.27 a node whose output has no size that can be estimated is not folded, nor what follows: the second
# digit's weights were gathered anew in every step, a quarter of its time (onnxruntime issue 32130)
FOLD_ALL = ("optimization.constant_folding_max_output_size_in_bytes", "0")
# Slices stay slices: a Split of unequal parts copies their sizes to the device in every step
KEEP_SLICES = ("optimization.disable_specified_optimizers", "GatherSliceToSplitFusion")


def import_onnxruntime() -> Any:
    """The module; BackendError where it is missing."""
    os.environ.setdefault(TELEMETRY, "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"the backend 'ort' needs onnxruntime ({error}): pip install 'flatlm[ort]' or 'flatlm[gpu]'"
        ) from error
    return onnxruntime


def demand(ort: Any, device: str) -> None:
    """BackendError where this onnxruntime does not have the device; loads the libraries that CUDA needs."""
    if device not in PROVIDERS:
        raise BackendError(f"the backend 'ort' has no device {device!r}; there are {', '.join(PROVIDERS)}")
    provider, _ = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise BackendError(f"this onnxruntime {ort.__version__} has no {provider}; {ADVICE}")
    if device == "cuda" and hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()) as said:  # it prints what it does not find
            ort.preload_dlls()
        if text := said.getvalue().strip():
            logging.getLogger(__name__).warning(text)


def session_options(ort: Any, threads: int | None) -> Any:
    """For both devices."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; a warning about each folded constant helps nobody
    options.intra_op_num_threads = threads or 0  # 0: onnxruntime's own choice
    options.add_session_config_entry(*FOLD_ALL)
    options.add_session_config_entry(*KEEP_SLICES)
    options.enable_mem_reuse = _plans_memory_fast(ort.__version__)
    return options


def _plans_memory_fast(version: str) -> bool:
    """Before 1.32 finding buffers to reuse is superlinear in the nodes: 36 s for SmolLM2-135M, 5 without."""
    return tuple(int(part) for part in version.split(".")[:2]) >= (1, 32)


class DeviceError(BackendError):
    """The device started, but onnxruntime cannot compute the model on it in this way."""


def open_session(
    ort: Any, model: str | bytes, options: Any, device: str, settings: Mapping[str, str] | None = None
) -> Any:
    """An InferenceSession of a file or its bytes; `settings`: of the provider, beside ours.

    BackendError where the device does not start; where onnxruntime cannot load the model, FormatError on the
    CPU and DeviceError elsewhere.
    """
    provider, ours = PROVIDERS[device]
    what = model if isinstance(model, str) else "the plan"
    try:
        session = ort.InferenceSession(model, options, providers=[(provider, {**ours, **(settings or {})})])
    except failures(ort) as error:
        if device != "cpu":
            raise _advised(ort, f"loading {what} on {device}", error) from error
        raise FormatError(f"onnxruntime {ort.__version__} cannot load {what}: {error}") from error
    if provider not in session.get_providers():  # onnxruntime falls back to the CPU without an error
        raise BackendError(
            f"{provider} of onnxruntime {ort.__version__} does not start on this machine: a driver that is "
            f"missing or too old, or libraries that are not found; {ADVICE}"
        )
    return session


@contextlib.contextmanager
def advised(ort: Any, what: str) -> Iterator[None]:
    """What onnxruntime raises inside becomes a BackendError that says `what` was tried and what helps, a
    DeviceError where another way of computing may do.
    """
    try:
        yield
    except failures(ort) as error:
        raise _advised(ort, what, error) from error


def _advised(ort: Any, what: str, error: Exception) -> BackendError:
    text = " ".join(str(error).split())
    kind, advice = next((one for sign, one in _SIGNS.items() if sign in text.lower()), _OTHERWISE)
    return kind(f"{what} failed in onnxruntime {ort.__version__}: {text[:400]}; {advice}")


# What onnxruntime says → whether another way of computing may do, which a DeviceError means, and what helps
_FULL = (DeviceError, "the device's memory is full: take a shorter --ctx, a smaller model, or --device cpu")
_OTHERWISE = (DeviceError, "--device cpu runs it")
_SIGNS: dict[str, tuple[type[BackendError], str]] = {
    "cudnn": (BackendError, f"cuDNN is not there or does not fit; {ADVICE}"),
    "no kernel image": (BackendError, "the wheel was not built for this GPU: docs/gpu.md says for which"),
    "allocate memory": _FULL,
    "out of memory": _FULL,
    "cublas": (DeviceError, f"cuBLAS refuses the product or is not there; {ADVICE}"),
}


def failures(ort: Any) -> tuple[type[Exception], ...]:
    """What onnxruntime raises: exceptions of its own, which share no base class, and two of Python's."""
    state, names = ort.capi.onnxruntime_pybind11_state, "Fail InvalidGraph InvalidProtobuf NotImplemented"
    return (RuntimeError, ValueError, *(getattr(state, name) for name in names.split()))
