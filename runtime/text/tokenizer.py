"""Text to token ids and back: the artifact's tokenizer.json, with Hugging Face's rules for special tokens.

Ids out, text in; nothing here knows of models. `Detokenizer` turns a stream of ids into pieces of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatlm.kernels_arm.files import read_text
from flatlm.runtime import settings
from flatlm.runtime.errors import (
    BackendError,
    ContextError,
    IntegrityError,
    TokenizerError,
    UsageError,
    first_line,
)
from flatlm.runtime.settings import Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
REPLACEMENT = "\ufffd"  # what decoders write for bytes that are not (yet) UTF-8
LONGEST = (
    32  # characters a token: a text with more than that for each of a context's is looked at in part first
)
MOST_HELD = 8  # tokens held back for a character; UTF-8 needs 4, more is not text


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer. `special` maps bos_token, eos_token … to their text; `eos_ids` end an answer."""

    hf: HFTokenizer
    special: dict[str, str]
    eos_ids: frozenset[int]
    special_ids: frozenset[int]

    def encode(self, text: str, special: bool = True, most: int | None = None) -> list[int]:
        """Token ids of `text`; with `special` tokenizer.json adds what it adds, a begin token for instance.

        As in transformers 5 the file decides that, whatever `add_bos_token` says. Text that spells a special
        token (a rendered chat template) becomes that token either way.

        A text far longer than `most` ids raises ContextError on its beginning: tokenizing cannot be stopped.
        """
        if most is not None and len(text) > LONGEST * most:
            least = len(self.encode(text[: LONGEST * most], special))
            if least > 2 * most:  # a word that was cut makes no such difference
                raise ContextError(
                    f"the prompt is more than {least} tokens long, the context holds {most}: shorten it "
                    "or raise --ctx"
                )
        try:
            return self.hf.encode(_unescaped(text), add_special_tokens=special).ids
        except (TypeError, UnicodeError):
            raise UsageError("the text is not valid Unicode: it holds bytes that are not UTF-8") from None

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `ids`; ids the vocabulary does not have are silent."""
        return self.hf.decode(list(ids), skip_special_tokens=skip_special)


def _unescaped(text: str) -> str:
    """`text`; where it is of an argument and the locale not UTF-8, the UTF-8 that Python saw no text in."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode()


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of an artifact (or any Hugging Face folder).

    Raises IntegrityError where tokenizer.json is missing, TokenizerError where it or its configuration is
    damaged, BackendError where the tokenizers package is missing.
    """
    folder = Path(folder)
    hf = _load_hf(folder / "tokenizer.json")
    config = read_json(folder / "tokenizer_config.json")
    generation = read_json(folder / "generation_config.json")
    special = {
        name: text for name in SPECIAL_NAMES if (text := _token_text(config.values.get(name))) is not None
    }
    eos_ids = set(generation.one_or_more("eos_token_id", int))
    named = hf.token_to_id(special.get("eos_token", ""))
    eos_ids |= set() if named is None else {named}
    special_ids = frozenset(
        number for number, token in hf.get_added_tokens_decoder().items() if token.special
    )
    return Tokenizer(hf, special, frozenset(eos_ids), special_ids)


def _load_hf(path: Path) -> HFTokenizer:
    try:
        from tokenizers import Tokenizer as HFTokenizer
    except ImportError:
        raise BackendError("the tokenizers package is not installed: pip install tokenizers") from None
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise IntegrityError(f"{path} is missing: the model cannot read text; export it again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read ({error}); export or copy the model again") from None
    try:
        hf = HFTokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001  the package raises just that for a damaged file
        raise _damaged(path, error) from None
    except BaseException as error:  # a panic of the package's Rust code is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise _damaged(path, error) from None
    hf.no_truncation()  # tokenizer.json may carry training-time settings
    hf.no_padding()
    return hf


def _damaged(path: Path, error: BaseException) -> TokenizerError:
    return TokenizerError(f"{path} is damaged ({first_line(error)}); export or copy the model again")


def read_json(path: Path) -> Settings:
    """The JSON object in `path`, empty where the file is missing. TokenizerError where it is no object."""
    if not path.exists():
        return Settings({}, str(path), TokenizerError)
    return settings.read(path, TokenizerError, "export or copy the model again")


def _token_text(entry: Any) -> str | None:
    """The text of a token of tokenizer_config.json: a string, or an object with `content`."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) and content else None


class Detokenizer:
    """Pieces of text from a stream of ids, such that the pieces together are the text of the whole.

    Bytes of an unfinished character are held back until it is complete. A piece is the difference between the
    text of a window with and without the new ids: decoders drop the space of a first word, so a word's space
    is known only beside the word before it. The window is the last piece and what is held: a push costs the
    same however long the answer is. `before` are the ids in front of the first pushed one (the end of a
    prompt that is continued), `shown` special tokens that are not skipped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        before: Sequence[int] = (),
        skip_special: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_ids - shown if skip_special else frozenset()
        self._window = [number for number in before if number not in self._skip][-MOST_HELD:]
        self._held = 0  # of the window's ids, how many have not been written
        self._before = self._decode(self._window)

    def push(self, number: int) -> str:
        """The text that became certain with the id `number`; empty while a character is incomplete."""
        if number in self._skip:  # never in the window: it would hide the word before the next one
            return ""
        self._window.append(number)
        self._held += 1
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and self._held < MOST_HELD:
            return ""
        return self._take(text)

    def finish(self) -> str:
        """What is still held, at the end of the answer; an incomplete character becomes U+FFFD."""
        return self._take(self._decode(self._window)) if self._held else ""

    def _take(self, text: str) -> str:
        piece = text[len(self._before) :]
        self._window = self._window[-self._held :]
        self._held = 0
        self._before = self._decode(self._window)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=False)
