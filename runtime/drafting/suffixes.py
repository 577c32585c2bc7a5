"""A suffix automaton over a growing sequence of ids: where did its longest suffix that occurs before occur?

Blumer et al. 1985. States are classes of substrings that end at the same places; `push` takes amortised O(1)
dictionary operations. Every push notes what it changes, so `pop` undoes it at the same cost: drafts come and
go. Notes are mostly plain numbers, for the garbage collector visits tuples and lists again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

CHAIN = 64  # suffix links followed to note an occurrence; only text like "aaaa…" has longer chains
LINK, LATEST = -1, -2  # what changed of a state, where it is not the edge of an id
NOWHERE = -1  # where an edge led that was not there


class Push(NamedTuple):
    """What it takes to undo one."""

    last: int  # the state of the whole sequence before
    states: int  # how many there were
    changes: int  # how many had been noted before
    latest: int  # the first of those that say where a state had been seen last


class SuffixIndex:
    """The sequence `ids`, indexed. State 0 is the empty string."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]  # of a state's longest string
        self._first = [-1]  # index of the last id of the earliest occurrence
        self._latest = [-1]  # of the latest one
        self._last = 0
        # In threes: the state, what changed of it (LINK, LATEST or the edge of an id), what was there
        self._changes: list[int] = []
        self._pushes: list[Push] = []

    def follow(self, ids: Sequence[int], common: int) -> None:
        """Become `ids`, which has its first `common` ids in common with the present sequence."""
        while len(self.ids) > common:
            self.pop()
        for number in ids[common:]:
            self.push(number)

    def match(self, latest: bool = False) -> tuple[int, int]:
        """(length, place) of the longest suffix that occurs before, and the index of the id that follows its
        earliest occurrence there, or its latest. (0, len(ids)) where the last id is new."""
        state = self._link[self._last]
        if state <= 0:
            return 0, len(self.ids)
        end = self._changes[self._pushes[-1].latest + 2] if latest else self._first[state]
        return self._length[state], end + 1

    def push(self, number: int) -> None:
        """Append one id."""
        last, before = self._last, len(self._changes)
        end, new, at = len(self.ids), len(self._next), last
        self.ids.append(number)
        self._add({}, 0, self._length[at] + 1, end)
        while at >= 0 and number not in self._next[at]:
            self._lead(at, number, new)
            at = self._link[at]
        if at >= 0:
            known = self._next[at][number]
            if self._length[known] != self._length[at] + 1:
                known = self._split(at, number, known)
            self._link[new] = known
        self._last = new
        self._pushes.append(Push(last, new, before, len(self._changes)))
        self._see(self._link[new], end)

    def pop(self) -> None:
        """Take the last id away."""
        push, changes = self._pushes.pop(), self._changes
        self.ids.pop()
        while len(changes) > push.changes:
            was, what, state = changes.pop(), changes.pop(), changes.pop()
            if what == LATEST:
                self._latest[state] = was
            elif what == LINK:
                self._link[state] = was
            elif was == NOWHERE:
                del self._next[state][what]
            else:
                self._next[state][what] = was
        for column in (self._next, self._link, self._length, self._first, self._latest):
            del column[push.states :]
        self._last = push.last

    def _add(self, edges: dict[int, int], link: int, length: int, first: int) -> None:
        self._next.append(edges)
        self._link.append(link)
        self._length.append(length)
        self._first.append(first)
        self._latest.append(first)

    def _lead(self, state: int, number: int, to: int) -> None:
        self._changes += state, number, self._next[state].get(number, NOWHERE)
        self._next[state][number] = to

    def _split(self, at: int, number: int, known: int) -> int:
        """The strings of `known` up to those that extend `at` now end at one more place: a state of their
        own.
        """
        clone = len(self._next)
        self._add(dict(self._next[known]), self._link[known], self._length[at] + 1, self._first[known])
        self._latest[clone] = self._latest[known]
        self._changes += known, LINK, self._link[known]
        self._link[known] = clone
        while at >= 0 and self._next[at].get(number) == known:
            self._lead(at, number, clone)
            at = self._link[at]
        return clone

    def _see(self, state: int, end: int) -> None:
        """The strings of `state`, and of those it links to, end here too. `match` reads what was before."""
        for _ in range(CHAIN):
            if state <= 0:
                return
            self._changes += state, LATEST, self._latest[state]
            self._latest[state] = end
            state = self._link[state]
