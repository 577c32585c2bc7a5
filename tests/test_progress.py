"""runtime.progress: a line rewritten on a terminal, plain lines elsewhere, nothing for what is quick."""

from __future__ import annotations

import io

from flatlm.runtime.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_plain_lines_without_a_terminal():
    stream = io.StringIO()
    with ProgressLine("reading", "tokens", stream, delay=0.0) as progress:
        progress(1, 4)
    assert stream.getvalue() == "reading:  25 % 1/4 tokens, 0:00, 0:00 left\n"


def test_progress_clears_its_line_on_a_terminal():
    stream = Terminal()
    with ProgressLine("reading", "tokens", stream, delay=0.0) as progress:
        progress(1, 4)
        progress(4, 4)
        assert stream.getvalue().endswith(" \r")
    assert "\x1b" not in stream.getvalue()


def test_what_is_soon_done_shows_no_progress():
    stream = Terminal()
    with ProgressLine("reading", stream=stream) as progress:
        progress(1, 1)
    assert stream.getvalue() == ""
