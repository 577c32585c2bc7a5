"""A conversation in a terminal: what is shown, what is typed, and the /commands."""

from __future__ import annotations

import contextlib
import io
import os
import select
import subprocess
import sys
import time

import pytest

from flatlm.export import exporter
from flatlm.export.recipe import RECIPES
from flatlm.export.sources import open_source
from flatlm.runtime.commands.talking import entry
from flatlm.runtime.commands.talking.conversation import Conversation, Manner, load
from flatlm.runtime.commands.talking.screen import DIM, RESET, Look, Thoughts, Wrapped, columns, show
from flatlm.runtime.commands.talking.words import WORDS, Leave, command_of, obey
from flatlm.runtime.errors import UsageError
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import PromptOptions, SamplingOptions
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.tiny_models import tiny_model
from tests.tiny_text import CHATML, ScriptedBackend, byte_level, write_folder

# ---- what is shown


def wrapped(text, width, pieces=1):
    out = io.StringIO()
    lines = Wrapped(out, lambda: width)
    for start in range(0, len(text), pieces):
        lines.write(text[start : start + pieces])
    lines.flush()
    return out.getvalue()


@pytest.mark.parametrize("pieces", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three", "one two\nthree"),
        ("one two  three", "one two\nthree"),
        ("one\n\ntwo", "one\n\ntwo"),
        ("abcdefghijkl mn", "abcdefghijkl mn"),
        ("日本 語語語", "日本\n語語語"),
        ("```\na b c d e f\n```\na b c d e f", "```\na b c d e f\n```\na b c d\ne f"),
        ("  indented a", "  indented\na"),
    ],
)
def test_lines_break_between_words(text, expected, pieces):
    assert wrapped(text, 8, pieces) == expected


def test_a_terminal_that_is_resized_is_followed():
    out, width = io.StringIO(), [20]
    lines = Wrapped(out, lambda: width[0])
    lines.write("one two three ")
    width[0] = 5
    lines.write("four five ")
    assert out.getvalue() == "one two three\nfour\nfive"


def test_wide_and_combining_characters_have_their_columns():
    assert (columns("abc"), columns("日本"), columns("e\u0301"), columns("🙂")) == (3, 4, 1, 2)


@pytest.mark.parametrize("size", [1, 2, 5, 50])
def test_thoughts_are_told_from_answers_however_they_are_cut(size):
    text = "<think>why < so</think>It <b>is</b>."
    thoughts, found = Thoughts(), []
    for start in range(0, len(text), size):
        found += thoughts.push(text[start : start + size])
    found += thoughts.finish()
    assert "".join(part for part, thought in found if thought) == "<think>why < so</think>"
    assert "".join(part for part, thought in found if not thought) == "It <b>is</b>."


def shown(text, **look):
    out = io.StringIO()
    whole = show([(text, "")], Look(**look), begins_thinking="<think>" not in text, out=out)
    assert whole == text
    return out.getvalue()


def test_thinking_is_dim_on_a_terminal_hidden_on_request_and_whole_in_a_pipe():
    assert shown("so</think>yes", terminal=True) == f"{DIM}so</think>{RESET}yes"
    assert shown("so</think>yes", hide_thinking=True) == "yes"
    assert shown("<think>so</think>yes") == "<think>so</think>yes"


def test_drafted_pieces_have_their_colour():
    out = io.StringIO()
    show([("a", ""), ("b ", "maxgram")], Look(True, False, {"maxgram": "\x1b[32m"}), out=out)
    assert out.getvalue() == "a\x1b[32mb\x1b[0m"


# ---- what is typed


def typed(*lines):
    waiting = iter(lines)
    prompts = []

    def read_line(prompt):
        prompts.append(prompt)
        return next(waiting)

    return entry.whole(read_line), prompts


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["hello"], "hello"),
        (['"""a', "b", 'c"""'], "a\nb\nc"),
        (['"""', "a", '"""'], "a"),
        (['"""a"""'], "a"),
        (["a\\", "b\\", "c"], "a\nb\nc"),
    ],
)
def test_a_message_of_several_lines(lines, message):
    found, prompts = typed(*lines)
    assert found == message
    assert prompts == ["> ", *["… "] * (len(lines) - 1)]


def test_where_history_is_kept(monkeypatch):
    monkeypatch.delenv("FLATLM_HISTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert str(entry.history_file()) == "/state/flatlm/history"
    monkeypatch.setenv("FLATLM_HISTORY", "/mine")
    assert str(entry.history_file()) == "/mine"
    monkeypatch.setenv("FLATLM_HISTORY", "")
    assert entry.history_file() is None


# ---- the commands


@pytest.fixture
def conversation(tmp_path):
    tokenizer = load_tokenizer(write_folder(tmp_path / "text", byte_level(), {"chat_template": CHATML}))
    answer = [*byte_level().encode("Paris").ids, 0]
    llm = LLM.of(ScriptedBackend(answer, context=256), tokenizer, CHATML)
    return Conversation(llm, None, Manner(SamplingOptions(), PromptOptions(), Look(), False))


def said(conversation, *lines):
    for line in lines:
        command = command_of(line)
        if command is None:
            conversation.ask(line)
        else:
            obey(conversation, *command)
    return [message["content"] for message in conversation.messages]


@pytest.mark.parametrize("line", ["/clear the table", "/etc/x", " /help", "/", "/undo this", "hello"])
def test_what_only_looks_like_a_command_is_a_question(line):
    assert command_of(line) is None


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/help", ("/help", "")),
        ("/hlep  ", ("/hlep", "")),
        ("/system Be brief.", ("/system", "Be brief.")),
        ("/set temp 0.5", ("/set", "temp 0.5")),
    ],
)
def test_commands_take_what_follows(line, command):
    assert command_of(line) == command


def test_undo_regen_and_clear(conversation, capsys):
    assert said(conversation, "one", "two") == ["one", "Paris", "two", "Paris"]
    assert said(conversation, "/regen") == ["one", "Paris", "two", "Paris"]
    assert "at temperature 0" in capsys.readouterr().err
    assert said(conversation, "/undo") == ["one", "Paris"]
    assert said(conversation, "/clear") == []
    for command in ("/undo", "/regen", "/drop"):
        said(conversation, command)
        assert "flatlm: " in capsys.readouterr().err


def test_the_system_message_stays_when_all_is_forgotten(conversation, capsys):
    assert said(conversation, "/system Be brief.", "one", "/clear", "/system") == ["Be brief."]
    assert "Be brief." in capsys.readouterr().err


def test_the_oldest_turns_are_forgotten_on_request_and_the_question_asked_again(conversation, capsys):
    said(conversation, "a" * 80, "b" * 80, "c" * 80)
    err = capsys.readouterr().err
    assert len(conversation.turns) == 2 and "/drop forgets the oldest turns" in err and "context " in err
    assert said(conversation, "/drop") == ["b" * 80, "Paris", "c" * 80, "Paris"]
    assert "the oldest 1 of 2 turns are forgotten" in capsys.readouterr().err
    assert said(conversation, "/drop 9") == []
    assert said(conversation, "x", "/drop y") == ["x", "Paris"]


def test_a_conversation_is_saved_and_goes_on(conversation, tmp_path, capsys):
    said(
        conversation,
        "/system Be brief.",
        "one",
        f"/save {tmp_path / 'talk'}",
        "two",
        f"/save {tmp_path / 'talk'}",
    )
    assert [one["role"] for one in load(tmp_path / "talk.json")][:2] == ["system", "user"]
    said(conversation, "/clear", "/system Other.")
    assert said(conversation, f"/load {tmp_path / 'talk.json'}") == [
        "Be brief.",
        "one",
        "Paris",
        "two",
        "Paris",
    ]
    assert len(conversation.turns) == 2


def test_a_file_of_others_is_not_replaced(conversation, tmp_path, capsys):
    (tmp_path / "mine.json").write_text('{"a": 1')
    said(conversation, "one", f"/save {tmp_path / 'mine.json'}", "/save", f"/load {tmp_path / 'none'}")
    assert (tmp_path / "mine.json").read_text() == '{"a": 1'
    err = capsys.readouterr().err
    assert "is not valid JSON" in err and "give a file" in err and "cannot read" in err


def test_set_changes_the_sampling(conversation, capsys):
    said(conversation, "/set temp 0.5", "/set top-k 3", "/set stop END")
    assert conversation.manner.sampling == SamplingOptions(temp=0.5, top_k=3, stop=("END",))
    said(conversation, "/set temp hot", "/set tmep 1", "/set temp")
    err = capsys.readouterr().err
    assert "--temp 'hot'" in err and "did you mean 'temp'" in err and "/set temp VALUE" in err
    assert conversation.manner.sampling.temp == 0.5


def test_stats_and_help(conversation, capsys):
    said(conversation, "one", "/stats", "/help")
    err = capsys.readouterr().err
    assert "1 turns" in err and "t/s" in err and all(name in err for name in WORDS)
    with pytest.raises(Leave):
        obey(conversation, "/quit", "")


def test_a_saved_file_must_hold_messages(tmp_path):
    (tmp_path / "x.json").write_text('{"messages": [{"role": "user"}]}')
    with pytest.raises(UsageError, match="content"):
        load(tmp_path / "x.json")


# ---- on a real terminal


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    source = open_source(str(tiny_model(folder / "source", context_length=512)))
    return exporter.export(
        source, folder / "tiny", RECIPES["quick"], tell=lambda stage: lambda done, total: None
    ).path


PLAIN = "import sys; sys.modules['prompt_toolkit'] = None\n"
CHAT = """
import sys
from flatlm.runtime.cli import main
sys.exit(main(["chat", sys.argv[1], "-n", "3", "--temp", "0"]))
"""


@contextlib.contextmanager
def terminal(program, model, environment):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(model)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    try:
        yield ours, process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


class Screen:
    """What a terminal shows. `until` gives it up to a text, and the next call goes on behind that."""

    def __init__(self, ours):
        self._ours, self._unread = ours, ""

    def until(self, text, seconds=60):
        end = time.monotonic() + seconds
        while text not in self._unread:
            assert time.monotonic() < end, self._unread
            if select.select([self._ours], [], [], 0.2)[0]:
                self._unread += os.read(self._ours, 1 << 16).decode("utf-8", "replace")
                if "\x1b[6n" in self._unread:  # prompt_toolkit asks where the cursor is
                    os.write(self._ours, b"\x1b[1;1R")
                    self._unread = self._unread.replace("\x1b[6n", "")
        seen, _, self._unread = self._unread.partition(text)
        return seen


@pytest.mark.parametrize("before", [PLAIN, ""], ids=["readline", "prompt_toolkit"])
def test_a_paste_is_one_message_and_is_kept_for_the_next_time(model, tmp_path, before):
    pytest.importorskip("readline" if before else "prompt_toolkit")
    environment = {**os.environ, "FLATLM_HISTORY": str(tmp_path / "history"), "TERM": "xterm"}
    with terminal(before + CHAT, model, environment) as (ours, process):
        screen = Screen(ours)
        assert "context 512 tokens" in screen.until(">")
        os.write(ours, b"\x1b[200~first line\nsecond line\nthird line\x1b[201~\r")
        assert screen.until("context ").count("[prompt ") == 1
        os.write(ours, b"/stats\r")
        seen = screen.until("written at")
        assert "1 turns" in seen and "[prompt " not in seen
        os.write(ours, b"/quit\r")
        assert process.wait(30) == 0
    kept = (tmp_path / "history").read_text()
    assert "second line" in kept and "/stats" in kept
    assert (tmp_path / "history").stat().st_mode & 0o77 == 0
