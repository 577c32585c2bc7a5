"""llama.cpp behind flatlm's backend protocol, so that both are measured and evaluated by the same code.

Straight on llama-cpp-python's C interface: a forward pass is one llama_decode of a batch built in numpy, and
the logits are a view of llama.cpp's own buffer. Settings are llama-bench's defaults (n_batch 2048, n_ubatch
512, flash attention on auto, weights mapped, K/V in F16) except for the threads and the context.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from flatlm.runtime.backends import Segment
from flatlm.runtime.drafting import Guess, Known, Odds, Offer, Place, Rule

_quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept: C holds no reference


def silence() -> None:
    """llama.cpp's log goes nowhere."""
    llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))


class LlamaPeer:
    """One sequence over one GGUF file, on the CPU."""

    name = "llama.cpp"

    def __init__(self, path: str | Path, *, threads: int, context: int) -> None:
        silence()
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_threads, params.n_threads_batch = context, threads, threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise SystemExit(f"llama.cpp makes no context of {context} tokens for {path}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)
        self._size = params.n_batch
        self.context, self.threads, self.position, self.slots = context, threads, 0, 1
        self.vocab = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        self.parameters = llama_cpp.llama_model_n_params(self._model)
        self.bytes = llama_cpp.llama_model_size(self._model)

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        """Appends ids [m], m ≤ n_batch; float32 [min(logits, m), vocab], valid until the next call."""
        m, wanted = len(ids), min(logits, len(ids))
        assert m <= self._size
        assert self.position + m <= self.context
        batch = self._batch
        batch.n_tokens = m
        _view(batch.token, m)[:] = ids
        _view(batch.pos, m)[:] = np.arange(self.position, self.position + m)
        _view(batch.n_seq_id, m)[:] = 1
        flags = _view(batch.logits, m)
        flags[:] = 0
        flags[m - wanted :] = 1
        for i in range(m):
            batch.seq_id[i][0] = 0
        if status := llama_cpp.llama_decode(self._context, batch):
            raise SystemExit(f"llama_decode failed with {status} at position {self.position}")
        self.position += m
        rows = llama_cpp.llama_get_logits(self._context)  # waits for the computation
        return np.ctypeslib.as_array(rows, (wanted, self.vocab))

    @property
    def positions(self) -> list[int]:
        return [self.position]

    def forward_many(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """One segment: of its only sequence."""
        (segment,) = segments
        return [self.forward(np.asarray(segment.ids), segment.logits)[: segment.logits]]

    def truncate(self, length: int, slot: int = 0) -> int:
        if length < self.position:
            llama_cpp.llama_memory_seq_rm(self._memory, 0, length, -1)
            self.position = length
        return self.position

    def encode(self, text: str) -> np.ndarray:
        """Token ids of `text` without a begin token, text that spells special tokens left as text."""
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), ids, len(ids), False, False)
        return np.ctypeslib.as_array(ids)[:count].astype(np.int64)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


class PromptLookup:
    """The prompt lookup of llama.cpp's Python package as a drafter, with its own settings."""

    name, costs, passes, seconds, loading = "lookup", None, 0, 0.0, 0.0
    assumed: ClassVar[Odds] = {0: 0.5}

    def __init__(self) -> None:
        self._find = LlamaPromptLookupDecoding()

    def begin(self, rule: Rule) -> None: ...

    def offer(self, place: Place, known: Known) -> Offer:
        return Offer(place, self._guesses(place))

    def draft(self, offers: Sequence[Offer]) -> list[list[Guess]]:
        return [self._guesses(offer.place) for offer in offers]

    def read(self, offer: Offer) -> None: ...

    def end(self, state: None) -> None: ...

    def close(self) -> None: ...

    def _guesses(self, place: Place) -> list[Guess]:
        found = self._find(np.asarray(place.ids, np.intc)) if place.n > 0 else ()
        return [Guess(int(token), self.name) for token in found[: place.n]]


def _view(pointer: ctypes._Pointer, count: int) -> np.ndarray:
    return np.ctypeslib.as_array(pointer, (count,))
