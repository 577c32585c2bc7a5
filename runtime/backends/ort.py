"""The ort backend: the same file through onnxruntime, on CPU or CUDA.

onnxruntime unpacks the weights when it loads (8 bits each, in its own memory), computes the logits of
every position, and copies the K/V cache at every step. So this backend is for PCs and for parity.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.artifact import MODEL, Artifact
from runtime.errors import BackendError, ContextError, FormatError
from runtime.functions import ATTENTIONS, SIGNED, cache_types
from runtime.graph import Node

CHUNK = 256  # tokens of one call: bounds the logits, 4 · V bytes a token (156 MB at V = 151,936)

_PROVIDERS = {
    "cpu": ("CPUExecutionProvider", {}),
    # tf32 keeps 10 bits of a product's operands; the float parts of this model are meant as float32
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}


class OrtBackend:
    """K/V are kept as OrtValues on the device, [1, g, position, d] per layer and kind, and their scales."""

    name = "ort"

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int | None = None,
        context: int | None = None,
        device: str = "cpu",
    ) -> None:
        graph = artifact.graph
        self.context = context or int(graph.metadata["context_length"])
        self.vocab = int(graph.metadata["vocab_size"])
        self.position = 0
        self._ort = _import()
        self._device = device
        self._session = _session(self._ort, str(artifact.path / MODEL), threads, device)
        attention = [node for node in graph.nodes if node.op in ATTENTIONS]
        self._empty = {name: empty for node in attention for name, empty in _empty_cache(node)}
        self._presents = [name for node in attention for name in node.outputs[1:]]
        self._cache: dict[str, Any] = {}
        self.truncate(0)

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        ids = np.asarray(ids, np.int64).reshape(1, -1)
        if self.position + ids.size > self.context:
            raise ContextError(
                f"{self.position} + {ids.size} tokens do not fit the context of {self.context}"
            )
        wanted = min(logits, ids.size)
        rows = [np.zeros((0, self.vocab), np.float32)]
        for start in range(0, ids.size, CHUNK):
            part = self._step(ids[:, start : start + CHUNK])
            unwanted = ids.size - wanted - start  # rows of this part before the first wanted one
            if unwanted < len(part):
                rows.append(part[max(unwanted, 0) :])
        return np.concatenate(rows)

    def truncate(self, length: int) -> None:
        if length >= self.position > 0:
            return
        for name, empty in self._empty.items():
            kept = self._cache[name].numpy()[:, :, :length] if length else empty
            kept = np.ascontiguousarray(kept)
            self._cache[name] = self._ort.OrtValue.ortvalue_from_numpy(kept, self._device, 0)
        self.position = length

    def close(self) -> None:
        self._cache.clear()
        self._session = None

    def _step(self, ids: np.ndarray) -> np.ndarray:
        """ids [1, T] → logits [T, V]; the cache grows by T."""
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("position_ids", np.arange(self.position, self.position + ids.size)[None])
        for name, value in self._cache.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu")
        for name in self._presents:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        logits, *presents = binding.get_outputs()
        self._cache = dict(zip(self._empty, presents, strict=True))
        self.position += ids.size
        return logits.numpy()[0]


def _empty_cache(node: Node) -> list[tuple[str, np.ndarray]]:
    """A layer's cache inputs, without any position."""
    heads = int(node.attrs["kv_num_heads"])
    return [(name, np.zeros((1, heads, 0, size), dtype)) for name, dtype, size in cache_types(node)]


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"the backend 'ort' needs onnxruntime ({error}): pip install 'flatlm[ort]' or 'flatlm[gpu]'"
        ) from error
    return onnxruntime


def _session(ort: Any, model: str, threads: int | None, device: str) -> Any:
    if device not in _PROVIDERS:
        raise BackendError(f"the backend 'ort' has no device {device!r}; there are {', '.join(_PROVIDERS)}")
    provider, settings = _PROVIDERS[device]
    advice = "install onnxruntime-gpu in the place of onnxruntime (flatlm[gpu]), and the CUDA it asks for"
    if provider not in ort.get_available_providers():
        raise BackendError(f"this onnxruntime {ort.__version__} has no {provider}; {advice}")
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; a warning about each folded constant helps nobody
    options.intra_op_num_threads = threads or 0  # 0: onnxruntime's own choice
    if device == "cuda":  # it multiplies int8 by int8 only
        signed = ort.OrtValue.ortvalue_from_numpy(np.array(1, np.uint8))
        options.add_external_initializers([SIGNED], [signed])
    failures: tuple[type[Exception], ...] = (RuntimeError, ValueError, *_failures(ort))
    try:
        session = ort.InferenceSession(model, options, providers=[(provider, settings)])
    except failures as error:
        raise FormatError(f"onnxruntime {ort.__version__} cannot load {model}: {error}") from error
    if provider not in session.get_providers():  # onnxruntime falls back to the CPU without an error
        raise BackendError(f"{provider} does not start on this machine; {advice}")
    return session


def _failures(ort: Any) -> tuple[type[Exception], ...]:
    """The exceptions of onnxruntime's own, which share no base class."""
    state, names = ort.capi.onnxruntime_pybind11_state, "Fail InvalidGraph InvalidProtobuf NotImplemented"
    return tuple(getattr(state, name) for name in names.split())
