"""The native backend: the plan, the compiled executor and its thread team."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from flatlm.kernels_arm import cpu, library, ops, team
from flatlm.runtime.backends import Segment, check_fit, check_ids, still_open
from flatlm.runtime.errors import BackendError
from flatlm.runtime.format.artifact import Artifact
from flatlm.runtime.format.functions import require_integers
from flatlm.runtime.format.widths import values_of
from flatlm.runtime.memory import require_memory
from flatlm.runtime.plan import Plan, lower
from flatlm.runtime.states import cut_back, load, save

BATCH = ops.MOST_STEP  # tokens of a prefill step
DEFAULT_CONTEXT = 4096


class NativeBackend:
    """Sequences over one artifact. `forward` is not reentrant: one thread drives a model."""

    name = "native"

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int | None = None,
        context: int | None = None,
        device: str = "cpu",
        slots: int = 1,
    ) -> None:
        choice = cpu.choose()
        if choice.tier is None:
            raise BackendError(
                f"no native kernels for this processor ({'; '.join(choice.objections)}); use --backend numpy"
            )
        try:
            kernels = library.load(choice.tier, warnings.warn)
        except library.KernelsUnavailable as error:
            raise BackendError(str(error)) from error
        require_integers(artifact.graph)
        metadata = artifact.graph.metadata
        longest = int(metadata["context_length"])
        self.context = min(context or min(longest, DEFAULT_CONTEXT), longest)
        values = values_of(artifact.graph)
        require_memory(artifact.graph, self.context, slots, values)
        self.vocab = int(metadata["vocab_size"])
        self._head_rows = int(artifact.graph.head.attrs["rows"])  # fewer in a drafter's short head
        self.slots, self._positions = slots, [0] * slots
        self.kernels = kernels
        batch = min(BATCH, self.context * slots)
        plan = lower(
            artifact.graph,
            kernels,
            context=self.context,
            batch=batch,
            logit_rows=BATCH,
            slots=slots,
            values=values,
        )
        self._floors = plan.floors
        runs = team.Team(kernels, plan.ops, plan.state, plan.scratch, threads or team.default_threads())
        self._parts: tuple[Plan, team.Team] | None = plan, runs  # None: closed

    @property
    def plan(self) -> Plan:
        return still_open(self._parts)[0]

    @property
    def team(self) -> team.Team:
        return still_open(self._parts)[1]

    @property
    def threads(self) -> int:
        return self.team.threads

    @property
    def position(self) -> int:
        return self.positions[0]

    @property
    def positions(self) -> list[int]:
        """Where an interrupt came before a step was noted: as many as its states have summed up."""
        return [max(held, self._floors.of(slot)) for slot, held in enumerate(self._positions)]

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        return self.forward_many([Segment(0, ids, logits)])[0]

    def forward_many(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        segments = [
            Segment(s.slot, np.asarray(s.ids, np.int64).reshape(-1), min(s.logits, np.size(s.ids)))
            for s in segments
        ]
        check_fit(self.positions, self.context, segments)
        check_ids(self.vocab, segments)
        rows: list[list[np.ndarray]] = [[] for _ in segments]
        for step in steps(segments, len(self.plan.ids)):
            for (number, _), logits in zip(step, self._step([part for _, part in step]), strict=True):
                rows[number].append(logits)
        return [found[0] if len(found) == 1 else np.concatenate(found) for found in rows]

    def _step(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """One walk of the plan; logits [wanted, rows of the head] by segment."""
        plan, positions, row, wanted, places = self.plan, self.positions, 0, 0, []
        for segment in segments:
            plan.ids[row : row + len(segment.ids)] = segment.ids
            row += len(segment.ids)
            plan.rows[wanted : wanted + segment.logits] = np.arange(row - segment.logits, row)
            places.append(slice(wanted, wanted + segment.logits))
            wanted += segment.logits
        plan.state[ops.STEP_TOKENS], plan.state[ops.STEP_LOGITS] = row, wanted
        plan.state[ops.STEP_SPANS] = ops.write_spans(
            plan.spans, ((s.slot, len(s.ids), positions[s.slot]) for s in segments)
        )
        self.team.step()
        for segment in segments:
            self._positions[segment.slot] = positions[segment.slot] + len(segment.ids)
        return [plan.logits[place, : self._head_rows].copy() for place in places]

    def truncate(self, length: int, slot: int = 0) -> int:
        if length < self.positions[slot]:
            self._positions[slot] = cut_back(self.plan.states, slot, length)
        return self.positions[slot]

    def copy(self, source: int, target: int, length: int) -> None:
        states = self.plan.states
        for state in states:
            state.copy(source, target, length)
        cut = length < self.positions[source]
        self._positions[target] = cut_back(states, target, length) if cut else length

    def save(self, slot: int, length: int) -> list[np.ndarray]:
        """Copies of the states after the first `length` tokens of a sequence; none if they have no such."""
        return save(self.plan.states, slot, length)

    def load(self, slot: int, length: int, arrays: Sequence[np.ndarray]) -> None:
        """A sequence of `length` tokens becomes what was saved; ValueError where that is of another model."""
        states = self.plan.states
        self._positions[slot] = cut_back(states, slot, 0)
        try:
            load(states, slot, arrays)
            self._floors.require(slot, length)
        except ValueError:
            cut_back(states, slot, 0)
            raise
        self._positions[slot] = length

    def close(self) -> None:
        if self._parts is not None:
            self.team.close()
            self._parts = None


def steps(segments: Sequence[Segment], size: int) -> Iterator[list[tuple[int, Segment]]]:
    """The segments, numbered, in steps of at most `size` tokens: one that is longer goes over several."""
    step: list[tuple[int, Segment]] = []
    room = size
    for number, segment in enumerate(segments):
        at, end = 0, len(segment.ids)
        while at < end:
            taken = min(end - at, room)
            wanted = min(taken, max(0, at + taken - (end - segment.logits)))
            step.append((number, Segment(segment.slot, segment.ids[at : at + taken], wanted)))
            at, room = at + taken, room - taken
            if room == 0:
                yield step
                step, room = [], size
    if step:
        yield step
