"""Constraints by llguidance: the tokens that keep an answer within a JSON schema, a regex or a grammar.

llguidance knows tokenizers by tokenizer.json, byte-level and sentencepiece alike. It is told of what was
written and cut back where a history is another one; a mask takes it some 100 µs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flatlm.runtime.errors import BackendError, TokenizerError, UsageError, first_line
from flatlm.runtime.generation.sequence import common_start
from flatlm.runtime.grammars import Grammar

if TYPE_CHECKING:
    from flatlm.runtime.text.tokenizer import Tokenizer

MOST_REASON = 300  # characters of what llguidance objects to
INSTALL = "pip install 'flatlm[json]'"

# Blanks as json.dumps writes them, and no others: small models write blanks for ever where they may, and what
# is certain of `{"name": ` is drafted in one pass.
JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Guided:
    """A `Constraint` of answers to a prompt of `prompt` ids, for a model of `vocab` ids.

    Of a text that must follow, llguidance allows one spelling, the tokenizer's.
    """

    def __init__(self, matcher: Any, words: int, prompt: int, vocab: int, end_ids: frozenset[int]) -> None:
        self._matcher, self._words = matcher, words  # and how many ids it knows
        self._prompt, self._vocab, self._end_ids = prompt, vocab, end_ids
        self._ends = np.array(sorted(number for number in end_ids if number < vocab), np.int64)
        self._taken: list[int] = []  # what the matcher was told
        self.failed = ""

    def allowed(self, history: Sequence[int]) -> np.ndarray | None:
        """See Constraint. Where the grammar has become too complex, or nothing may follow: the end tokens."""
        if not self._follow(list(history[self._prompt :])):
            return None
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if not self._sound():
            return self._ends
        found = np.flatnonzero(np.unpackbits(bits, count=min(self._vocab, 8 * len(bits)), bitorder="little"))
        return found if len(found) else self._ends

    def takes(self, history: Sequence[int], ids: Sequence[int] | np.ndarray) -> int:
        """See Constraint."""
        if not self._follow(list(history[self._prompt :])):
            return 0
        for count, number in enumerate(ids):  # the matcher takes any spelling of what must follow, a mask one
            if number in self._end_ids:
                return count + bool(self._sound() and self._matcher.is_accepting())
            must = self._matcher.compute_ff_tokens()
            if (must and must[0] != number) or not self._consume([number]):
                return count
        return len(ids)

    def forced(self, history: Sequence[int]) -> list[int]:
        """See Constraint."""
        if not self._follow(list(history[self._prompt :])):
            return []
        found: list[int] = self._matcher.compute_ff_tokens()
        return [number for number in found if number < self._vocab] if self._sound() else []

    def _follow(self, written: list[int]) -> bool:
        """Be behind what was written; whether that is allowed."""
        matcher, same = self._matcher, common_start(self._taken, written)
        if same < len(self._taken):
            matcher.rollback(len(self._taken) - same)
            del self._taken[same:]
        return self._consume(written[same:]) or not self._sound()

    def _consume(self, ids: Sequence[int]) -> bool:
        """Tell the matcher of ids, up to the first that may not follow; whether that is all.

        Not of ids that it does not know, an error that stays, nor of one that ends an answer.
        """
        known = [
            int(n) for n in itertools.takewhile(lambda n: n < self._words and n not in self._end_ids, ids)
        ]
        count = self._matcher.try_consume_tokens(known)
        self._taken += known[:count]
        return bool(count == len(ids))

    def _sound(self) -> bool:
        if not self.failed and self._matcher.is_error():
            self.failed = first_line(ValueError(self._matcher.get_error()))
        return not self.failed


class Guidance:
    """Makes the constraints of a model of `vocab` ids with `tokenizer`."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab

    def constraint(self, grammar: Grammar, prompt: int) -> Guided:
        """That of one answer to a prompt of `prompt` ids.

        Raises UsageError for a grammar that is none, BackendError where llguidance is missing, TokenizerError
        for a tokenizer that it cannot read.
        """
        llguidance = _package()
        if not any(number < self._vocab for number in self._tokenizer.eos_ids):
            raise UsageError("the model has no end token: an answer of a given form could not end")
        try:
            matcher = llguidance.LLMatcher(self.known, _source(llguidance, grammar), log_level=0)
            matcher.compute_bitmask()  # one that nothing can be of shows it here
            problem = matcher.get_error() or (matcher.stop_reason() if matcher.is_error() else "")
        except ValueError as error:
            problem = str(error)
        if problem:
            what = " ".join(problem.split())[:MOST_REASON]
            raise UsageError(f"--{grammar.kind.replace('_', '-')} cannot be used: {what}", param=grammar.kind)
        return Guided(matcher, self.known.vocab_size, prompt, self._vocab, self._tokenizer.eos_ids)

    @functools.cached_property
    def known(self) -> Any:
        """llguidance's own tokenizer. Made when it is first needed, which takes half a second for 49,000
        tokens and two for 152,000.
        """
        llguidance, tokenizer = _package(), self._tokenizer
        try:
            return llguidance.LLTokenizer(
                tokenizer.hf.to_str(),
                eos_token=sorted(tokenizer.eos_ids),
                slices=llguidance.LLTokenizer.json_slices(),
            )
        except ValueError as error:
            raise TokenizerError(
                f"llguidance cannot read the model's tokenizer ({first_line(error)}): it cannot be held to a "
                "form"
            ) from None


def usable(grammar: Grammar) -> bool:
    """Whether there is llguidance, and it knows what to do with `grammar`."""
    try:
        llguidance = _package()
        problem: str = llguidance.LLMatcher.validate_grammar(_source(llguidance, grammar))
    except (BackendError, ValueError):
        return False
    return not problem or bool(llguidance.LLMatcher.is_validate_warning(problem))


def _source(llguidance: Any, grammar: Grammar) -> str:
    """The grammar in llguidance's form."""
    if grammar.kind == "json_schema":
        source: str = llguidance.LLMatcher.grammar_from_json_schema(grammar.text, defaults=JSON_FORM)
    elif grammar.kind == "regex":
        source = llguidance.LLMatcher.grammar_from_regex(grammar.text)
    else:
        source = llguidance.grammar_from("gbnf", grammar.text)  # Lark is left as it is
    return source


def _package() -> Any:
    try:
        import llguidance

        _ = llguidance.LLMatcher  # where it has no wheel there is an empty package of its name
    except (ImportError, AttributeError):
        raise BackendError(
            f"answers of a given form need llguidance: {INSTALL}; without it ask for the form in the prompt"
        ) from None
    return llguidance
