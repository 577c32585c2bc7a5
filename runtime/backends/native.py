"""The native backend: the plan, the compiled executor and its thread team."""

from __future__ import annotations

import sys

import numpy as np

from kernels_arm import cpu, library, team
from runtime.errors import BackendError, ContextError
from runtime.memory import require_memory
from runtime.plan import lower

BATCH = 512  # tokens of a prefill step: enough to reuse each panel of weights, and 10-40 MB of buffers
DEFAULT_CONTEXT = 4096


class NativeBackend:
    """One sequence over one artifact. `forward` is not reentrant: one thread drives a model."""

    name = "native"

    def __init__(
        self, artifact, *, threads: int | None = None, context: int | None = None, device: str = "cpu"
    ):
        choice = cpu.choose()
        if choice.tier is None:
            raise BackendError(
                f"no native kernels for this processor ({'; '.join(choice.objections)}); use --backend numpy"
            )
        try:
            kernels = library.load(choice.tier, lambda text: print(text, file=sys.stderr, flush=True))
        except library.KernelsUnavailable as error:
            raise BackendError(str(error)) from error
        metadata = artifact.graph.metadata
        longest = int(metadata["context_length"])
        self.context = min(context or min(longest, DEFAULT_CONTEXT), longest)
        require_memory(artifact.graph, self.context)
        self.vocab = int(metadata["vocab_size"])
        self.position = 0
        self.kernels = kernels
        self.plan = lower(
            artifact.graph, kernels, context=self.context, batch=min(BATCH, self.context), logit_rows=BATCH
        )
        self.team = team.Team(
            kernels, self.plan.ops, self.plan.state, self.plan.scratch, threads or team.default_threads()
        )

    @property
    def threads(self) -> int:
        return self.team.threads

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        ids = np.asarray(ids, np.int64).reshape(-1)
        if self.position + len(ids) > self.context:
            raise ContextError(
                f"{self.position} + {len(ids)} tokens do not fit the context of {self.context}"
            )
        if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab):
            raise BackendError(f"token ids must lie in 0 … {self.vocab - 1}, got {ids.min()} … {ids.max()}")
        wanted = min(logits, len(ids))
        rows = []
        size = len(self.plan.ids)
        for at in range(0, len(ids), size):
            piece = ids[at : at + size]
            rows.append(self._step(piece, max(0, min(len(piece), at + len(piece) - (len(ids) - wanted)))))
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _step(self, ids: np.ndarray, logits: int) -> np.ndarray:
        self.plan.ids[: len(ids)] = ids
        self.plan.state[:3] = len(ids), self.position, logits
        self.team.step()
        self.position += len(ids)
        return self.plan.logits[:logits, : self.vocab].copy()

    def truncate(self, length: int) -> None:
        self.position = min(self.position, length)

    def close(self) -> None:
        self.team.close()
