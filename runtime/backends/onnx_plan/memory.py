"""Memory of the device: the caches of the sequences, and what a step of so many tokens reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flatlm.kernels_arm.layout import padded
from flatlm.runtime.format.widths import LOGITS, Cache

from .exact import KEYS, WRITE
from .model import ROWS

BLOCK = 256  # the places of a cache are a multiple: the int8 cache is computed in blocks of so many keys
FIRST = BLOCK  # places that a sequence begins with; they double until the context fits


class SequenceCache:
    """The parts of the cache of one sequence, [1, heads, places, columns] each, on the device."""

    def __init__(self, ort: Any, device: str, caches: Sequence[Cache], context: int) -> None:
        self._ort, self._device, self._caches = ort, device, caches
        self._most = padded(context, BLOCK)
        self.places = 0
        self.parts: list[Any] = []
        self.grow(FIRST)

    def grow(self, length: int) -> bool:
        """Whether it had to be laid anew to hold `length` positions. What it holds stays."""
        if length <= self.places:
            return False
        places = max(self.places, FIRST)
        while places < length:
            places *= 2
        places, held = min(places, self._most), self.parts
        self.parts = []
        for number, cache in enumerate(self._caches):
            shape = (1, *(places if size is None else size for size in cache.shape))
            array = np.zeros(shape, cache.dtype)
            if held:
                array[:, :, : self.places] = held[number].numpy()
            self.parts.append(self._ort.OrtValue.ortvalue_from_numpy(array, self._device, 0))
        self.places = places
        return True

    def fill(self, other: SequenceCache, length: int) -> None:
        """The first `length` positions are those of `other`; what stands after them is nobody's."""
        self.grow(length)
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            if self.places == other.places:  # on the device
                mine.update_inplace(theirs)
                continue
            array = mine.numpy()
            array[:, :, :length] = theirs.numpy()[:, :, :length]
            mine.update_inplace(array)


class Step:
    """Steps of one sequence that read `tokens` ids and give `rows` rows of logits: always the same memory.

    So a step can be captured as a CUDA graph, whose number is `graph`; -1: it is launched node by node.
    """

    def __init__(
        self, session: Any, ort: Any, device: str, held: SequenceCache, caches: Sequence[Cache],
        sizes: tuple[int, int, int], graph: int = -1,
    ) -> None:  # fmt: skip
        tokens, rows, vocabulary = sizes
        self._session, self._held = session, held  # the memory that is bound lives as long as this

        def value(array: np.ndarray) -> Any:
            return ort.OrtValue.ortvalue_from_numpy(array, device, 0)

        shapes = {"input_ids": (1, tokens), "position_ids": (1, tokens), WRITE: (1,)}
        self._inputs = {name: value(np.zeros(shape, np.int64)) for name, shape in shapes.items()}
        self._inputs[ROWS] = value(np.arange(tokens - rows, tokens))
        self._inputs[KEYS] = value(np.arange(held.places))
        self._logits = value(np.zeros((1, rows, vocabulary), np.float32))
        self._binding = session.io_binding()
        for name, one in self._inputs.items():
            self._binding.bind_ortvalue_input(name, one)
        self._binding.bind_ortvalue_output(LOGITS, self._logits)
        for cache, one in zip(caches, held.parts, strict=True):
            self._binding.bind_ortvalue_input(cache.past, one)
            self._binding.bind_ortvalue_output(cache.present, one)
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(graph))

    def run(self, ids: np.ndarray, first: int) -> np.ndarray:
        """ids [T] at the positions from `first` on → logits [R, V]."""
        self._inputs["input_ids"].update_inplace(ids[None])
        self._inputs["position_ids"].update_inplace(np.arange(first, first + ids.size)[None])
        self._inputs[WRITE].update_inplace(np.array([first]))
        self._session.run_with_iobinding(self._binding, self._options)
        return np.array(self._logits.numpy()[0])  # on the CPU it is the memory that the next step writes
