"""Work on a thread of its own gives its result, or its error, to who asks for it."""

from __future__ import annotations

import threading

import pytest

from flatlm.runtime.background import in_background


def test_both_sides_run_at_once():
    mine, theirs = threading.Event(), threading.Event()

    def work() -> str:
        theirs.set()
        assert mine.wait(10)
        return "done"

    result = in_background(work)
    assert theirs.wait(10)
    mine.set()
    assert result() == "done"


def test_the_error_is_raised_where_the_result_is_asked_for():
    def work() -> None:
        raise ValueError("from the thread")

    result = in_background(work)
    with pytest.raises(ValueError, match="from the thread"):
        result()
