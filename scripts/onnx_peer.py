"""onnxruntime behind flatlm's backend protocol, on a folder of make_matmulnbits.py.

The K/V cache is bound once, the same memory as input and output, as onnxruntime-genai does; nothing is copied
in a step but ids and logits. Session options are the defaults except for the threads.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from flatlm.runtime.backends.ort_session import import_onnxruntime
from flatlm.runtime.text.tokenizer import load_tokenizer

onnxruntime = import_onnxruntime()


class OnnxPeer:
    """One sequence over one file, on the CPU."""

    name = "onnxruntime"

    def __init__(self, folder: str | Path, *, threads: int, context: int) -> None:
        self._folder = Path(folder)
        facts = json.loads((self._folder / "peer.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        path = str(self._folder / "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        shape = (1, facts["groups"], facts["context"], facts["size"])
        self._cache = []
        for i in range(facts["layers"]):
            for part in ("key", "value"):
                value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                self._binding.bind_ortvalue_input(f"past.{i}.{part}", value)
                self._binding.bind_ortvalue_output(f"present.{i}.{part}", value)
                self._cache.append(value)
        self.context, self.threads, self.position = facts["context"], threads, 0
        self.vocab, self.bytes = facts["vocab"], facts["bytes"]

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        """Appends ids [m]; float32 [min(logits, m), vocab]."""
        m, total = len(ids), self.position + len(ids)
        bind = self._binding.bind_cpu_input
        bind("input_ids", np.ascontiguousarray(ids, np.int64).reshape(1, m))
        bind("rows", np.array([min(logits, m)], np.int64))
        bind("seqlens_k", np.array([total - 1], np.int32))
        bind("total_sequence_length", np.array(total, np.int32))
        self._binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(self._binding)
        self.position = total
        return self._binding.get_outputs()[-1].numpy()[0]

    def truncate(self, length: int, slot: int = 0) -> int:
        self.position = min(self.position, length)
        return self.position

    def encode(self, text: str) -> np.ndarray:
        return np.array(load_tokenizer(self._folder).encode(text, special=False), np.int64)

    def close(self) -> None:
        del self._session
