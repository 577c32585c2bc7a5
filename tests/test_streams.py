"""The command's streams: closed, full, of another encoding, a terminal; foreign errors; the first Ctrl-C."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from flatlm.runtime import cli
from flatlm.runtime.commands import streams
from flatlm.runtime.commands.common import print_json
from flatlm.runtime.progress import ProgressLine

ROOT = Path(__file__).parent.parent
FULL = pytest.param(">/dev/full", marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux"))


def shell(redirection, *arguments, encoding="utf-8", **environment):
    """`flatlm ARGUMENTS REDIRECTION` in a shell of its own: status, stdout, stderr as bytes."""
    words = " ".join([f"'{sys.executable}' -m flatlm", *arguments, redirection])
    env = {**os.environ, "PYTHONIOENCODING": encoding, **environment}
    done = subprocess.run(["sh", "-c", words], cwd=ROOT, env=env, capture_output=True, timeout=60)
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize("redirection", [">&-", FULL])
def test_a_result_that_cannot_be_written_is_one_line_and_status_1(redirection):
    status, out, err = shell(redirection, "--help")
    assert (status, out, err.count("\n")) == (1, b"", 1)
    assert err.startswith("flatlm: standard output ")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&- >/dev/null"])
def test_talk_without_a_place_is_lost_and_stays_off_stdout(redirection):
    assert shell(redirection, "info", "nothing/there")[:2] == (1, b"")


def test_a_result_comes_though_talk_is_lost():
    status, out, _ = shell("2>&-", "--version")
    assert (status, out.startswith(b"flatlm ")) == (0, True)


def test_stdin_that_is_closed_holds_no_prompt(tmp_path):
    status, _, err = shell("<&-", "generate", str(tmp_path))
    assert (status, err.count("\n"), "no prompt: give -p" in err) == (2, 1, True)
    assert "standard input is closed" in shell("<&-", "generate", str(tmp_path), "-f", "-")[2]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_a_character_that_stdout_lacks_is_written_out(encoding):
    status, out, err = shell("", "--help", encoding=encoding)
    assert (status, err) == (0, "")
    assert rb"usage: flatlm VERB \u2026" in out


def test_the_users_own_choice_for_such_characters_stands():
    assert b"usage: flatlm VERB ?\n" in shell("", "--help", encoding="ascii:replace")[1]


@pytest.mark.parametrize(("encoding", "pure"), [("latin-1", True), ("utf-8", False), ("UTF8", False)])
def test_json_is_ascii_where_stdout_is_not_utf8(monkeypatch, encoding, pure):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    print_json({"text": "日本語 é"})
    sys.stdout.flush()
    assert raw.getvalue().isascii() == pure
    assert json.loads(raw.getvalue().decode(encoding)) == {"text": "日本語 é"}


def test_a_foreign_exception_is_one_line_and_its_traceback_is_there_for_the_asking(capsys, monkeypatch):
    def broken(argv):
        return {}["key"]

    monkeypatch.setattr(cli, "_dispatch", broken)
    assert cli.main(["info"]) == 1
    assert capsys.readouterr().err == (
        "flatlm: KeyError: 'key' (a bug of flatlm or a damaged file; FLATLM_DEBUG=1 shows where)\n"
    )
    monkeypatch.setenv("FLATLM_DEBUG", "1")
    assert cli.main(["info"]) == 1
    assert "in broken\n" in capsys.readouterr().err


class Panic(BaseException):
    """As those of Rust's libraries: no Exception."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RecursionError("too deep"), "flatlm: RecursionError: too deep (a bug"),
        (Panic("unwrap on None"), "flatlm: Panic: unwrap on None (a bug"),
        (OSError(12, "Cannot allocate memory"), "flatlm: out of memory"),
        (PermissionError(13, "Permission denied", "a/b"), "flatlm: a/b: Permission denied\n"),
        (ValueError("\x1b]0;title\x07\x9b"), r"flatlm: ValueError: \x1b]0;title\x07\x9b (a bug"),
        (ValueError("x" * 10**6), "flatlm: ValueError: xxx"),
    ],
)
def test_every_exception_is_one_line(capsys, monkeypatch, error, said):
    def broken(argv):
        raise error

    monkeypatch.setattr(cli, "_dispatch", broken)
    assert cli.main(["info"]) == 1
    err = capsys.readouterr().err
    assert (err.startswith(said), err.count("\n"), len(err) < 600) == (True, 1, True)


def test_an_interrupt_that_an_import_made_its_own_error_is_still_an_interrupt(capsys, monkeypatch):
    def importing(argv):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise ImportError("numpy._core.multiarray failed to import") from None

    monkeypatch.setattr(cli, "_dispatch", importing)
    assert (cli.main(["info"]), capsys.readouterr().err) == (130, "flatlm: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_while_the_command_is_imported_is_one_line():
    code = (
        "import sys, builtins; from flatlm.__main__ import main\n"
        "def interrupted(*_, **__): raise KeyboardInterrupt\n"
        "builtins.__import__ = interrupted; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "flatlm: interrupted\n")


def test_the_entry_point_imports_little_before_it_can_catch():
    code = "import sys; before = set(sys.modules); import flatlm.__main__; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert set(done.stdout.split()) == {"flatlm", "flatlm.__main__", "__future__"}


def test_only_colours_reach_a_terminal():
    assert streams.printable("a\tb\n\x1b[32mgreen\x1b[0m") == "a\tb\n\x1b[32mgreen\x1b[0m"
    assert streams.printable("\x1b[2J\r\x1b[8mé\x00\x9b") == r"\x1b[2J\x0d\x1b[8mé\x00\x9b"


def test_a_terminal_is_not_steered_by_what_is_printed_and_a_file_gets_it_as_it_is():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        print("\x1b[2J", file=streams.Result(stream))
    assert (terminal.getvalue(), file.getvalue()) == ("\\x1b[2J\n", "\x1b[2J\n")


def test_foreign_bytes_of_a_line_become_text():
    for raw, text in ((b"caf\xc3\xa9", "café"), (b"caf\xe9!", "caf\ufffd!"), (b"plain", "plain")):
        for encoding in ("ascii", "utf-8"):
            assert streams.as_text(raw.decode(encoding, "surrogateescape")) == text


def screen(written: str, columns: int) -> list[str]:
    """What stands on a terminal of so many columns, which breaks lines, in the end."""
    lines, x, y = [[" "] * columns], 0, 0
    for character in written.replace("\r\n", "\n"):
        if character == "\r":
            x = 0
        else:
            if character == "\n" or x == columns:
                x, y = 0, y + 1
                lines.append([" "] * columns)
            if character != "\n":
                lines[y][x] = character
                x += 1
    return [text for line in lines if (text := "".join(line).rstrip())]


@pytest.mark.parametrize("columns", [80, 45, 20, 2])
def test_progress_leaves_nothing_on_a_terminal_of_any_width(columns):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(theirs, "w") as terminal:
        with ProgressLine("reading the prompt", "tokens", terminal, delay=0.0) as progress:
            for done in range(1, 8):
                progress._next = 0.0
                progress(done * 128, 1024)
        terminal.write("ok\n")
        terminal.flush()
        written = ""
        while not written.endswith("ok\r\n"):  # a terminal hands on what it has so far
            written += os.read(ours, 65536).decode()
    os.close(ours)
    assert "rea"[: columns - 1] in written
    assert screen(written, columns) == ["ok"]
