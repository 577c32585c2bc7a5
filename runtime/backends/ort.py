"""The ort-file backend: a model's file as it stands through onnxruntime, on CPU or CUDA.

onnxruntime unpacks the weights when it loads (8 bits each, in its own memory), computes the logits of
every position, and copies the K/V cache at every step. So this shows what the file means to any onnxruntime,
and runs what the plan of `onnx_plan` refuses. A state that does not grow with the positions can only be cut
back to where the last step began.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flatlm.runtime.backends import Segment, check_fit, still_open
from flatlm.runtime.backends import ort_session as sessions
from flatlm.runtime.errors import BackendError
from flatlm.runtime.format.artifact import MODEL, Artifact
from flatlm.runtime.format.functions import SIGNED
from flatlm.runtime.format.widths import caches_of
from flatlm.runtime.memory import give_back
from flatlm.runtime.states.snapshots import Snapshots

CHUNK = 256  # tokens of one call: bounds the logits, 4 · V bytes a token (156 MB at V = 151,936)
PART = "onnxruntime runs files, not the {} of one: take native or numpy"


class OrtBackend:
    """One sequence after another. K/V are kept as OrtValues on the device, [1, g, position, d] per sequence,
    layer and kind, and their scales; other states as the graph gives them.
    """

    name = "ort-file"

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int | None = None,
        context: int | None = None,
        device: str = "cpu",
        slots: int = 1,
    ) -> None:
        graph = artifact.graph
        if graph.part:
            raise BackendError(PART.format(graph.part))
        self.context = context or int(graph.metadata["context_length"])
        self.vocab = int(graph.metadata["vocab_size"])
        self.slots, self.positions = slots, [0] * slots
        self._ort = sessions.import_onnxruntime()
        sessions.demand(self._ort, device)
        self._device = device
        self._session: Any = self._opened(str(artifact.path / MODEL), threads)  # None: closed
        caches = caches_of(graph)
        self._empty = {c.past: np.zeros((1, *(size or 0 for size in c.shape)), c.dtype) for c in caches}
        self._growing = {c.past for c in caches if c.grows}
        self._presents = {c.past: c.present for c in caches}
        self._caches: list[dict[str, Any]] = [self._first_of({}, 0) for _ in range(slots)]
        self._states = [Snapshots[Any]() for _ in range(slots)]

    def _opened(self, model: str, threads: int | None) -> Any:
        options = sessions.session_options(self._ort, threads)
        if self._device == "cuda":  # it multiplies int8 by int8 only
            signed = self._ort.OrtValue.ortvalue_from_numpy(np.array(1, np.uint8))
            options.add_external_initializers([SIGNED], [signed])
        session = sessions.open_session(self._ort, model, options, self._device)
        give_back()
        return session

    @property
    def position(self) -> int:
        return self.positions[0]

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        return self.forward_many([Segment(0, ids, logits)])[0]

    def forward_many(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        check_fit(self.positions, self.context, segments)
        return [self._run(s.slot, np.asarray(s.ids, np.int64).reshape(1, -1), s.logits) for s in segments]

    def _run(self, slot: int, ids: np.ndarray, logits: int) -> np.ndarray:
        wanted = min(logits, ids.size)
        rows = [np.zeros((0, self.vocab), np.float32)]
        for start in range(0, ids.size, CHUNK):
            part = self._step(slot, ids[:, start : start + CHUNK])
            unwanted = ids.size - wanted - start  # rows of this part before the first wanted one
            if unwanted < len(part):
                rows.append(part[max(unwanted, 0) :])
        return np.concatenate(rows)

    def truncate(self, length: int, slot: int = 0) -> int:
        if length < self.positions[slot]:
            self.copy(slot, slot, length)
        return self.positions[slot]

    def copy(self, source: int, target: int, length: int) -> None:
        caches, states = still_open(self._caches)[source], self._states[source].copy()
        kept = states.cut_back(length) if length < self.positions[source] else length
        self._caches[target], self._states[target] = self._first_of(caches, kept), states
        self.positions[target] = kept

    def _first_of(self, cache: dict[str, Any], length: int) -> dict[str, Any]:
        """A cache of the first `length` positions of another: what grows with them."""
        found = {}
        for name in self._growing:
            kept = np.ascontiguousarray(cache[name].numpy()[:, :, :length] if length else self._empty[name])
            found[name] = self._value(kept)
        return found

    def _value(self, array: np.ndarray) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array, self._device, 0)

    def close(self) -> None:
        self._caches.clear()
        self._session = None

    def _step(self, slot: int, ids: np.ndarray) -> np.ndarray:
        """ids [1, T] → logits [T, V]; the sequence's cache grows by T."""
        past = self.positions[slot]
        binding = still_open(self._session).io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("position_ids", np.arange(past, past + ids.size)[None])
        states = self._states[slot]
        states.begin(past)
        held = {**self._caches[slot], **states.now}
        for name, empty in self._empty.items():
            binding.bind_ortvalue_input(name, held[name] if name in held else self._value(empty))
        binding.bind_output("logits", "cpu")
        for name in self._presents.values():
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        logits, *presents = binding.get_outputs()
        made = dict(zip(self._presents, presents, strict=True))
        self._caches[slot] = {name: value for name, value in made.items() if name in self._growing}
        states.now = {name: value for name, value in made.items() if name not in self._growing}
        self.positions[slot] += ids.size
        rows: np.ndarray = logits.numpy()[0]
        return rows
