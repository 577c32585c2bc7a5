"""A request with tools, put to a model: what its template is given, how its answer is read and held.

messages, tools = told(template, messages, tooling)      → the prompt's text, by the template
reading, grammar = reading_of(template, text, tooling, tokenizer)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flatlm.runtime.grammars import Grammar
from flatlm.runtime.text.guidance import usable
from flatlm.runtime.text.tools.deltas import Message, folded
from flatlm.runtime.text.tools.families import HARMONY, Family, family_of, knows_tools
from flatlm.runtime.text.tools.generic import without_tools
from flatlm.runtime.text.tools.harmony import HarmonyReader
from flatlm.runtime.text.tools.held import grammar_of_calls
from flatlm.runtime.text.tools.reader import MarkedReader, Reader
from flatlm.runtime.text.tools.request import Tooling
from flatlm.runtime.text.tools.written import Schemas

if TYPE_CHECKING:
    from flatlm.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reading:
    """How an answer is read: by the ways of its family, for the tools of `schemas`.

    `thinking`: the prompt has opened the thoughts. `vouched`: a grammar holds calls to the format's form.
    """

    family: Family
    schemas: Schemas = field(default_factory=dict)
    thinking: bool = False
    vouched: bool = False

    def reader(self) -> Reader:
        """One for an answer that is to come."""
        if self.family is HARMONY:
            return HarmonyReader()
        return MarkedReader(self.family, self.schemas, self.thinking, self.vouched)

    def message(self, text: str) -> Message:
        """A whole answer in its parts."""
        reader = self.reader()
        return folded([*reader.push(text), *reader.finish()])

    def shown(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Special tokens that are part of the text."""
        family = self.family
        marks = (*family.special, *family.think, family.opener, family.closer)
        return frozenset(_token_ids(marks, tokenizer).values())


def told(
    template: str | None, messages: Sequence[Mapping[str, Any]], tooling: Tooling | None
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None]:
    """(messages, tools) for the template: one that knows no tools finds them in the messages."""
    tools = tooling.tools if tooling is not None else ()
    called = any(message.get("role") == "tool" or message.get("tool_calls") for message in messages)
    if not (tools or called) or knows_tools(template):
        return messages, tools or None
    return without_tools(messages, tools), None


def reading_of(
    template: str | None, text: str, tooling: Tooling | None, tokenizer: Tokenizer, free: bool = True
) -> tuple[Reading | None, str | None]:
    """(how the answer to the prompt `text` is read, the grammar that holds its calls to their schemas).

    No reading where an answer is nothing but text. No grammar where no call must be and none can be told
    from text while it is written. Where the answer is not `free` but of a form, calls that may be are not
    held to theirs.
    """
    family = family_of(template)
    thinks = template is not None and family.think[0] in template
    thinking = thinks and family is not HARMONY and text.rstrip().endswith(family.think[0].rstrip())
    if tooling is None:
        return (Reading(family, thinking=thinking), None) if thinks or family is HARMONY else (None, None)
    marks = _token_ids([family.opener, family.closer, *family.special, *family.think], tokenizer)
    grammar = grammar_of_calls(family, tooling, marks, True if thinking else None if thinks else False)
    if grammar and not (tooling.forced or (free and usable(Grammar("grammar", grammar)))):
        grammar = None  # a call that may be is read without
    return Reading(family, tooling.schemas, thinking, grammar is not None), grammar


def _token_ids(texts: Sequence[str], tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of those texts that are a token which no other text spells."""
    added = {token.content: number for number, token in tokenizer.hf.get_added_tokens_decoder().items()}
    return {text: added[text] for text in texts if text in added}
