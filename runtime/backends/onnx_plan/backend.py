"""The ort backend as a rule: the plan of a model through onnxruntime, on CPU or CUDA.

The K/V caches have fixed places and stay on the device: a step reads ids and gives the wanted rows of
logits, nothing else is copied, and cutting a sequence back is an assignment. On CUDA a step of few tokens is
captured as a graph, one for each sequence and number of tokens, and launched as a whole from then on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from flatlm.runtime import ops
from flatlm.runtime.backends import ort, still_open
from flatlm.runtime.backends import ort_session as sessions
from flatlm.runtime.backends.one_by_one import OneByOne
from flatlm.runtime.format.artifact import Artifact
from flatlm.runtime.format.graph import Graph
from flatlm.runtime.format.widths import caches_of
from flatlm.runtime.memory import available_bytes, give_back
from flatlm.runtime.ops.packed import sizes

from .exact import REWRITES
from .fast import FAST
from .memory import SequenceCache, Step
from .model import plan_of

CAPTURED = 17  # tokens of a step up to which it is captured: a draft of 16 and the token before it
WIDE = 9  # bytes a weight that onnxruntime needs in this machine's memory to make float64 of int8
# Forms of products (products.py), best first; the next is tried where one does not fit or is refused
FORMS = {"cpu": ("uint8",), "cuda": ("double", "int8")}


class OtherPlanWarning(UserWarning):
    """The plan runs in another way than the one that was tried first."""


def open_plan(artifact: Artifact, *, device: str = "cpu", **options: Any) -> PlanBackend:
    """A PlanBackend with the best form of products that the device computes, as CUDA graphs if it captures
    them. Raises as PlanBackend does.
    """
    forms = _forms(artifact.graph, device)
    attempts = [(form, captures) for captures in (True, False) for form in forms]
    failures: list[sessions.DeviceError] = []
    for form, captures in attempts:
        try:
            opened = PlanBackend(artifact, device=device, form=form, captures=captures, **options)
        except sessions.DeviceError as error:
            failures.append(error)
            continue
        if failures:
            how = f"{form} products, {'as CUDA graphs' if captures else 'launched node by node'}"
            warnings.warn(
                f"{how}, because what was tried before failed: {failures[0]}", OtherPlanWarning, stacklevel=3
            )
        return opened
    raise failures[0]


def _forms(graph: Graph, device: str) -> Sequence[str]:
    """Those of the device, without float64 where this machine could not make so many weights of it."""
    forms, free = FORMS.get(device, ("",)), available_bytes()
    weights = sum(math.prod(sizes(graph, node)) for node in graph.nodes if ops.is_product(node))
    if free is not None and WIDE * weights > free:
        forms = tuple(form for form in forms if form != "double")
    return forms


class PlanBackend(OneByOne):
    """One sequence after another. `fast`: standard operators where there are, which is not bit-exact."""

    name = "ort"

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int | None = None,
        context: int | None = None,
        device: str = "cpu",
        slots: int = 1,
        fast: bool = False,
        form: str = "uint8",
        captures: bool = True,
    ) -> None:
        """`form`: of products, a key of products.PRODUCTS. `captures`: steps as CUDA graphs.

        Refused where a function of the model cannot be part of a plan; BackendError where the device does not
        start or does not run it.
        """
        graph = artifact.graph
        self.context = context or int(graph.metadata["context_length"])
        self.vocab = int(graph.metadata["vocab_size"])
        self.slots, self.positions = slots, [0] * slots
        self.fast, self.form = fast, form
        self.captures = captures and device == "cuda"
        self._ort = sessions.import_onnxruntime()
        sessions.demand(self._ort, device)
        self._device, self._parts = device, caches_of(graph)
        self._steps: dict[tuple[int, int, int], Step] = {}
        self._graphs = 0  # captured so far; each has a number of its own
        self._session: Any = self._opened(artifact, threads)  # None: closed
        with sessions.advised(self._ort, f"the first step on {device}"):
            self._caches = [self._empty() for _ in range(slots)]
            if device == "cuda":
                self._step(0, np.zeros(1, np.int64), 1)  # a library that is missing is missed here
                self.truncate(0)

    def _opened(self, artifact: Artifact, threads: int | None) -> Any:
        table = FAST if self.fast else REWRITES
        plan = plan_of(artifact.path, artifact.graph, self.form, table)
        options = sessions.session_options(self._ort, threads)
        plan.hand_over(self._ort, options)
        settings = {"enable_cuda_graph": "1"} if self.captures else {}
        model = plan.model.SerializeToString()
        session = sessions.open_session(self._ort, model, options, self._device, settings)
        del plan, options
        give_back()
        return session

    def _empty(self) -> SequenceCache:
        return SequenceCache(self._ort, self._device, self._parts, self.context)

    def step(self, slot: int, ids: np.ndarray, logits: int) -> np.ndarray:
        first = ids.size - min(logits, ids.size)  # the first row that is wanted
        rows = [np.zeros((0, self.vocab), np.float32)]
        for start in range(0, ids.size, ort.CHUNK):
            part = ids[start : start + ort.CHUNK]
            wanted = min(max(start + part.size - first, 0), part.size)
            found = self._step(slot, part, max(wanted, 1))
            rows.append(found[len(found) - wanted :])
        return np.concatenate(rows)

    def _step(self, slot: int, ids: np.ndarray, rows: int) -> np.ndarray:
        """ids [T] → the last `rows` rows of logits; the sequence's cache grows by T."""
        cache = still_open(self._caches)[slot]
        if cache.grow(self.positions[slot] + ids.size):
            self._steps = {key: step for key, step in self._steps.items() if key[0] != slot}
        step = self._steps.get((slot, ids.size, rows)) or self._made(slot, ids.size, rows)
        logits = step.run(ids, self.positions[slot])
        self.positions[slot] += ids.size
        return logits

    def _made(self, slot: int, tokens: int, rows: int) -> Step:
        """A step that is not there yet; those that come again, of few tokens, are kept."""
        kept = tokens <= CAPTURED
        self._graphs += kept
        graph = self._graphs if kept and self.captures else -1
        widths = tokens, rows, self.vocab
        step = Step(self._session, self._ort, self._device, self._caches[slot], self._parts, widths, graph)
        if kept:
            self._steps[slot, tokens, rows] = step
        return step

    def truncate(self, length: int, slot: int = 0) -> int:
        self.positions[slot] = min(self.positions[slot], length)
        return self.positions[slot]

    def copy(self, source: int, target: int, length: int) -> None:
        caches = still_open(self._caches)
        if source != target:
            if caches[target].grow(length):
                self._steps = {key: step for key, step in self._steps.items() if key[0] != target}
            caches[target].fill(caches[source], length)
        self.positions[target] = length

    def close(self) -> None:
        self._steps.clear()
        self._caches.clear()
        self._session = None
