"""Stop texts in a stream of pieces: an answer ends before the first, and not a character of it shows."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Lets text through up to the first stop text. What could be the start of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self.held = ""
        self.found: str | None = None  # the stop text that came

    def push(self, piece: str) -> str:
        """The part of all text so far that is certain and not yet returned."""
        text = self.held + piece
        places = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            first, self.found = min(places)
            self.held = ""
            return text[:first]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """At the end of the answer the start of a stop text is just text."""
        text, self.held = self.held, ""
        return text


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
