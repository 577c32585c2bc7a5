"""A drafting model whose head knows only the ids that are likely to come.

Half of what a small model reads for a token may be its head, a row for each id of a large vocabulary, and
most of those ids never come. A drafter needs few: what it does not know it does not guess, and the target
says it itself. (Zhao et al., FR-Spec, arXiv 2502.14856, rank the ids by their frequency in a corpus.) Known
here are

- the first ids of the vocabulary: byte-pair encoding numbers tokens in the order in which it merged them, the
  most frequent first;
- others that the drafter read, in this conversation or before; for a new one the first of them goes.

The head is a copy of those rows, and rows change places in it between two passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from flatlm.kernels_arm import layout
from flatlm.kernels_arm.team import aligned
from flatlm.runtime import ops
from flatlm.runtime.backends import Segment
from flatlm.runtime.format.graph import Graph, Tensor

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend
    from flatlm.runtime.format.artifact import Artifact

FIRST = 16384  # ids from 0 on that are always known
MET = 4096  # others that were met: an English text of 100,000 tokens has about as many


def with_short_head(
    artifact: Artifact, open_model: Callable[[Artifact], Backend], first: int = FIRST, met: int = MET
) -> Backend:
    """`artifact` opened by `open_model` with a head of `first` + `met` rows (both multiples of 16).

    Whole where that is no shorter, or where the head's weights have sparse excess. `open_model` must open a
    backend that reads a head's constants where they are, in each pass: the native one.
    """
    node = artifact.graph.head
    if not ops.is_product(node) or int(node.attrs["rows"]) <= first + met:
        return open_model(artifact)
    if artifact.graph.constants[ops.named(node)["excess_delta"]].data.size:
        return open_model(artifact)
    known = KnownRows(artifact.graph, first, met)
    return ShortHead(open_model(replace(artifact, graph=known.graph)), known)


class KnownRows:
    """The rows of a head that are known: those of the ids below `first`, and places for `met` others.

    `graph` is the model with these for its head; rows are changed in its constants.
    """

    def __init__(self, graph: Graph, first: int, met: int) -> None:
        assert first % layout.ROWS == met % layout.ROWS == 0, "a panel belongs to one kind of rows"
        node, total = graph.head, first + met
        roles, columns = ops.named(node), int(node.attrs["columns"])
        bits, weight = graph.bits(roles["weight"]), graph.constants[roles["weight"]]
        self.vocab, self.first = int(node.attrs["rows"]), first
        self._id_of = np.append(np.arange(first), np.full(met, -1))  # of each row; -1: none yet
        self._row = np.append(np.arange(first), np.full(self.vocab - first, -1))  # where an id may be
        self._next = 0  # of the places, the one to be taken
        self._order: tuple[np.ndarray, np.ndarray] | None = None  # see `_ordered`; None: rows changed
        self._all = _panels(weight.data, self.vocab)
        self._known = _panels(aligned(self._all[0].nbytes * total // layout.ROWS), total)
        self._known[: first // layout.ROWS] = self._all[: first // layout.ROWS]
        self._floats = []  # scale and bias: (of all ids, of the known ones)
        shape = layout.packed_shape(total, columns, bits)
        data = self._known.reshape(-1).view(weight.data.dtype)
        constants = {"short.weight": Tensor(weight.dtype, shape, data)}
        for role in ("scale", "bias"):
            whole = graph.array(roles[role])
            self._floats.append((whole, np.append(whole[:first], np.zeros(met, whole.dtype))))
            constants[f"short.{role}"] = Tensor.of(self._floats[-1][1])
        taken = {role: f"short.{role}" for role in ("weight", "scale", "bias")}
        head = replace(node, inputs=tuple({**roles, **taken}.values()), attrs={**node.attrs, "rows": total})
        self.graph = replace(graph.with_head(head, constants), part="short head")

    def meet(self, ids: np.ndarray) -> None:
        """Take in those of `ids` that are not known, as many as there are places.

        An interrupt at any moment leaves ids unknown, and never one with a row that is not its own.
        """
        places = len(self._id_of) - self.first
        new = np.unique(ids[self._id_of[self._row[ids]] != ids])[:places]
        if not new.size:  # as in most passes
            return
        self._order = None
        rows = self.first + (self._next + np.arange(new.size)) % places
        self._next += new.size
        self._id_of[rows] = -1
        to, of = divmod(rows, layout.ROWS), divmod(new, layout.ROWS)
        self._known[to[0], :, to[1]] = self._all[of[0], :, of[1]]
        for whole, known in self._floats:
            known[rows] = whole[new]
        self._row[new] = rows
        self._id_of[rows] = new

    @property
    def ids(self) -> np.ndarray:
        """The ids that have a row, ascending."""
        return self._ordered()[1]

    def sort(self, logits: np.ndarray) -> np.ndarray:
        """Logits [m, rows] → [m, known]."""
        return np.hstack((logits[:, : self.first], logits.take(self._ordered()[0], axis=1)))

    def _ordered(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows beyond the first that belong to an id, in the order of their ids; and all ids known."""
        if self._order is None:
            rows = self.first + np.argsort(self._id_of[self.first :])
            rows = rows[self._id_of[rows] >= 0]
            self._order = rows, np.append(self._id_of[: self.first], self._id_of[rows])
        return self._order


class ShortHead:
    """A backend that gives logits of the ids it knows and of no others. It owns `backend`."""

    def __init__(self, backend: Backend, known: KnownRows) -> None:
        self._backend, self._known = backend, known
        self.name, self.context, self.slots = backend.name, backend.context, backend.slots
        self.vocab, self.graph = known.vocab, known.graph

    @property
    def position(self) -> int:
        return self._backend.position

    @property
    def positions(self) -> Sequence[int]:
        return self._backend.positions

    @property
    def ids(self) -> np.ndarray:
        """Those that the logits of the last pass belong to, ascending."""
        return self._known.ids

    def forward(self, ids: np.ndarray, logits: int = 1) -> np.ndarray:
        """Logits [logits, len(self.ids)]."""
        return self.forward_many([Segment(0, ids, logits)])[0]

    def forward_many(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        for segment in segments:
            ids = np.asarray(segment.ids, np.int64).reshape(-1)
            self._known.meet(ids[(ids >= 0) & (ids < self.vocab)])  # of others the backend complains
        return [self._known.sort(logits) for logits in self._backend.forward_many(segments)]

    def truncate(self, length: int, slot: int = 0) -> int:
        return self._backend.truncate(length, slot)

    def copy(self, source: int, target: int, length: int) -> None:
        self._backend.copy(source, target, length)

    def close(self) -> None:
        self._backend.close()


def _panels(packed: np.ndarray, rows: int) -> np.ndarray:
    """A view of the packed weights of `rows` rows, 4 bits or 8, as bytes [panels, steps, 16 rows, 4]."""
    return packed.view(np.uint8).reshape(layout.padded(rows, layout.ROWS) // layout.ROWS, -1, layout.ROWS, 4)
