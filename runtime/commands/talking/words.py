"""The /commands of a conversation: one function each, in a table that /help prints.

A command stands alone on its line, or with what it takes. What only looks like one is asked; with a blank
before it, so is everything.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flatlm.runtime.commands.common import say
from flatlm.runtime.commands.talking.conversation import Conversation, load
from flatlm.runtime.errors import FlatlmError, UsageError
from flatlm.runtime.generation.published import in_words
from flatlm.runtime.options import SamplingOptions, did_you_mean, from_args

_NAME = re.compile(r"/[A-Za-z]+\s*")  # what looks like a command's name; a line with more in it is a question


@dataclass(frozen=True, slots=True)
class Word:
    """A command. `takes` is shown by /help; empty: nothing may follow. `run` returns whether Ctrl-C came."""

    run: Callable[[Conversation, str], bool | None]
    help: str
    takes: str = ""


class Leave(Exception):
    """The conversation ends."""


def command_of(line: str) -> tuple[str, str] | None:
    """(command, what follows) of a line; None for a question."""
    name, _, rest = line.partition(" ")
    if name in WORDS and WORDS[name].takes:
        return name, rest.strip()
    if _NAME.fullmatch(line):
        return line.strip(), ""
    return None


def obey(conversation: Conversation, name: str, rest: str) -> bool:
    """Do what a command says; returns whether Ctrl-C stopped an answer. What cannot be done is said."""
    if name not in WORDS:
        say(f"flatlm: {name} is no command{did_you_mean(name, WORDS)} (with a blank before it, it is asked)")
        return False
    try:
        return bool(WORDS[name].run(conversation, rest))
    except FlatlmError as error:
        say(f"flatlm: {error}")
        return False


def _leave(conversation: Conversation, rest: str) -> None:
    raise Leave


def _help(conversation: Conversation, rest: str) -> None:
    width = max(len(f"{name} {word.takes}") for name, word in WORDS.items())
    for name, word in WORDS.items():
        say(f"{f'{name} {word.takes}':<{width}}  {word.help}")
    say('""" begins and ends a message of several lines, \\ ends a line that goes on; a paste is one')
    say("Ctrl-C stops an answer, twice leaves; Ctrl-D leaves")


def _clear(conversation: Conversation, rest: str) -> None:
    conversation.clear()
    say("forgotten: all but the system message")


def _system(conversation: Conversation, rest: str) -> None:
    if rest:
        conversation.system(rest)
        say("it is told this from the next question on")
    else:
        say(conversation.opening[0]["content"] if conversation.opening else "there is no system message")


def _save(conversation: Conversation, rest: str) -> None:
    path = _path(rest)
    conversation.save(path)
    say(f"saved as {path}")


def _load(conversation: Conversation, rest: str) -> None:
    conversation.take(load(_path(rest)))
    say(f"{len(conversation.turns)} turns: the conversation goes on from there")


def _path(text: str) -> Path:
    if not text:
        raise UsageError("give a file")
    path = Path(text).expanduser()
    return path if path.suffix else path.with_suffix(".json")


def _regen(conversation: Conversation, rest: str) -> bool:
    if not conversation.turns:
        raise UsageError("nothing was asked yet")
    if conversation.manner.sampling.temp == 0:
        say("at temperature 0 the answer is the same again: /set temp 0.7")
    return conversation.again()


def _undo(conversation: Conversation, rest: str) -> None:
    if not conversation.turns:
        raise UsageError("there is nothing to take back")
    conversation.undo()
    say(f"the last question and its answer are forgotten, {len(conversation.turns)} turns are left")


def _drop(conversation: Conversation, rest: str) -> bool:
    """Half of the turns unless it is said how many; then what did not fit is asked again."""
    turns = len(conversation.turns)
    if not turns:
        raise UsageError("there is nothing to forget")
    if rest and not rest.isdigit():
        raise UsageError(f"/drop {rest}: how many turns? a whole number")
    count = min(turns, int(rest) if rest else (turns + 1) // 2)
    refused = conversation.refused
    conversation.drop(count)
    say(f"the oldest {count} of {turns} turns are forgotten")
    return conversation.ask(refused) if refused is not None else False


def _stats(conversation: Conversation, rest: str) -> None:
    say(f"context {conversation.used} of {conversation.context} tokens, {len(conversation.turns)} turns")
    say(f"sampling {in_words(conversation.manner.sampling)}")
    if conversation.last is not None:
        t = conversation.last.timings
        say(f"last answer: read at {t.prefill_rate:.1f} t/s, written at {t.decode_rate:.1f} t/s")


def _set(conversation: Conversation, rest: str) -> None:
    fields = {item.name: item for item in dataclasses.fields(SamplingOptions)}
    name, _, text = rest.partition(" ")
    if name:
        name = name.lstrip("-").replace("-", "_")
        if name not in fields:
            raise UsageError(f"/set {name}{did_you_mean(name, fields)}")
        if not text.strip():
            raise UsageError(f"/set {name} VALUE: {fields[name].metadata['help']}")
        value = [text.strip()] if fields[name].default == () else text.strip()
        given = argparse.Namespace(**{name: value})
        conversation.set(from_args(given, SamplingOptions, conversation.manner.sampling))
    sampling = conversation.manner.sampling
    say(
        ", ".join(
            f"{one} {getattr(sampling, one)}" for one in fields if getattr(sampling, one) not in ((), None)
        )
    )


WORDS = {
    "/help": Word(_help, "this"),
    "/clear": Word(_clear, "forget all that was said"),
    "/system": Word(_system, "what the model is told before everything; alone, it is shown", "[TEXT]"),
    "/save": Word(_save, "write the conversation into a JSON file", "FILE"),
    "/load": Word(_load, "go on with one that was saved", "FILE"),
    "/regen": Word(_regen, "another answer to the last question"),
    "/undo": Word(_undo, "take the last question back"),
    "/drop": Word(_drop, "forget the oldest turns (half of them), when the context is full", "[N]"),
    "/stats": Word(_stats, "context, sampling, speed"),
    "/set": Word(_set, "sampling from now on, as /set temp 0.5; alone, it is shown", "[NAME VALUE]"),
    "/quit": Word(_leave, "leave"),
}
