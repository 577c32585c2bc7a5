"""What is typed or piped into a conversation: a message at a time.

On a terminal a paste is one message, however many lines it has. More lines are typed between two \"\"\", or
after a line that ends in a backslash; with prompt_toolkit (the extra `chat`) Alt-Enter begins one too. What
was typed is kept for the next conversation, in $XDG_STATE_HOME/flatlm/history; FLATLM_HISTORY names another
file, and none where it is empty. From a pipe every line is a message.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from flatlm.runtime.commands.streams import as_text

PROMPT, MORE = "> ", "… "
FENCE = '"""'
KEPT = 1000  # lines of history
Reader = Callable[[str], str]  # a prompt → a line; EOFError at the end


def read() -> str:
    """The next message. EOFError at the end of stdin, KeyboardInterrupt for Ctrl-C."""
    if sys.stdin is None:
        raise EOFError
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return as_text(input())
    return as_text(whole(_terminal()))


def whole(read_line: Reader) -> str:
    """A message of one or more lines."""
    line = read_line(PROMPT)
    if line.lstrip().startswith(FENCE):
        text = line.lstrip().removeprefix(FENCE)
        while FENCE not in text:
            text += "\n" + read_line(MORE)
        return text.partition(FENCE)[0].strip("\n")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + read_line(MORE)
    return line


def history_file() -> Path | None:
    """Where what was typed is kept; None: nowhere."""
    told = os.environ.get("FLATLM_HISTORY")
    if told is not None:
        return Path(told).expanduser() if told else None
    try:
        state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    except RuntimeError:  # no home
        return None
    return state / "flatlm" / "history"


@functools.cache
def _terminal() -> Reader:
    path = history_file()
    if path is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
        if not os.access(path, os.W_OK):
            path = None
    try:
        return _with_prompt_toolkit(path)
    except ImportError:
        return _with_readline(path)


def _with_prompt_toolkit(history: Path | None) -> Reader:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    kept = InMemoryHistory() if history is None else FileHistory(str(history))
    session: PromptSession[str] = PromptSession(
        history=kept, key_bindings=keys, prompt_continuation=MORE, reserve_space_for_menu=0
    )
    return lambda prompt: session.prompt(prompt)


def _with_readline(history: Path | None) -> Reader:
    try:
        import readline
    except ImportError:  # Windows, and some builds of Python
        return input
    with contextlib.suppress(Exception):  # libedit's has no such setting
        readline.parse_and_bind("set enable-bracketed-paste on")
    if history is not None:
        with contextlib.suppress(OSError):
            readline.read_history_file(history)
        readline.set_history_length(KEPT)

    def read_line(prompt: str) -> str:
        line = input(prompt)
        if history is not None:
            with contextlib.suppress(OSError):
                readline.write_history_file(history)
        return line

    return read_line
