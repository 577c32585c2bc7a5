"""A suffix automaton over a growing sequence of ids: where did its longest suffix that occurs before occur?

Blumer et al. 1985. States are classes of substrings that end at the same places; `push` takes amortised O(1)
dictionary operations. Every push notes what it changed, so `pop` undoes it at the same cost: drafts come and
go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

CHAIN = 64  # suffix links followed to note an occurrence; only text like "aaaa…" has longer chains


class Change(NamedTuple):
    """What one push did, newest last."""

    last: int  # the state of the whole sequence before
    states: int  # how many there were
    edges: list[tuple[int, int, int | None]]  # state, id, the state it led to
    links: list[tuple[int, int]]  # state, its link
    latest: list[tuple[int, int]]  # state, where it had been seen last


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
        self._changes: list[Change] = []

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
        end = self._changes[-1].latest[0][1] if latest else self._first[state]
        return self._length[state], end + 1

    def push(self, number: int) -> None:
        """Append one id."""
        change = Change(self._last, len(self._next), [], [], [])
        end, new, at = len(self.ids), len(self._next), self._last
        self.ids.append(number)
        self._add({}, 0, self._length[at] + 1, end)
        while at >= 0 and number not in self._next[at]:
            self._lead(at, number, new, change)
            at = self._link[at]
        if at >= 0:
            known = self._next[at][number]
            if self._length[known] != self._length[at] + 1:
                known = self._split(at, number, known, change)
            self._link[new] = known
        self._last = new
        self._note(self._link[new], end, change)
        self._changes.append(change)

    def pop(self) -> None:
        """Take the last id away."""
        change = self._changes.pop()
        self.ids.pop()
        for state, was in reversed(change.latest):
            self._latest[state] = was
        for state, was in reversed(change.links):
            self._link[state] = was
        for state, number, led in reversed(change.edges):
            if led is None:
                del self._next[state][number]
            else:
                self._next[state][number] = led
        for column in (self._next, self._link, self._length, self._first, self._latest):
            del column[change.states :]
        self._last = change.last

    def _add(self, edges: dict[int, int], link: int, length: int, first: int) -> None:
        self._next.append(edges)
        self._link.append(link)
        self._length.append(length)
        self._first.append(first)
        self._latest.append(first)

    def _lead(self, state: int, number: int, to: int, change: Change) -> None:
        change.edges.append((state, number, self._next[state].get(number)))
        self._next[state][number] = to

    def _split(self, at: int, number: int, known: int, change: Change) -> int:
        """The strings of `known` up to those that extend `at` now end at one more place: a state of their
        own.
        """
        clone = len(self._next)
        self._add(dict(self._next[known]), self._link[known], self._length[at] + 1, self._first[known])
        self._latest[clone] = self._latest[known]
        change.links.append((known, self._link[known]))
        self._link[known] = clone
        while at >= 0 and self._next[at].get(number) == known:
            self._lead(at, number, clone, change)
            at = self._link[at]
        return clone

    def _note(self, state: int, end: int, change: Change) -> None:
        """The strings of `state`, and of those it links to, end here too. `match` reads what was before."""
        for _ in range(CHAIN):
            if state <= 0:
                return
            change.latest.append((state, self._latest[state]))
            self._latest[state] = end
            state = self._link[state]
