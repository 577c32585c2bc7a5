"""The text side of a Hugging Face folder, from files that complete each other.

End tokens stand in config.json, generation_config.json and tokenizer_config.json, special tokens in
tokenizer_config.json and special_tokens_map.json, a chat template in a file of its own or in
tokenizer_config.json. A file that says all there is to say is copied as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flatlm.export.sources.source import Files, json_bytes, no_default
from flatlm.runtime import settings
from flatlm.runtime.errors import SourceError
from flatlm.runtime.settings import Settings
from flatlm.runtime.text.tokenizer import SPECIAL_NAMES

_LARGEST_ID = (1 << 31) - 1
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def small_files(folder: Path, config: Settings) -> tuple[Files, list[str]]:
    """`Source.files` and what to tell people about them.

    Raises SourceError where one is damaged or tokenizer.json is missing.
    """
    if not (folder / "tokenizer.json").is_file():
        raise SourceError(
            f"{folder} has no tokenizer.json; write one with transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    tokenizer_config = _read(folder / "tokenizer_config.json")
    files: dict[str, bytes | Path] = {
        "tokenizer.json": folder / "tokenizer.json",
        "tokenizer_config.json": _tokenizer_config(folder, tokenizer_config),
        "generation_config.json": _generation_config(folder, config),
    }
    notes: list[str] = []
    if (folder / "chat_template.jinja").is_file():
        files["chat_template.jinja"] = folder / "chat_template.jinja"
    elif tokenizer_config and (template := chat_template(tokenizer_config, notes)):
        files["chat_template.jinja"] = template.encode()
    return files, notes


def chat_template(tokenizer_config: Settings, notes: list[str]) -> str | None:
    """The template of a tokenizer_config.json: a text, or the one called default of several named ones.

    Several without a default are none, as in transformers; `notes` then gets a line that says so.
    """
    if not isinstance(tokenizer_config.values.get("chat_template"), list):
        return tokenizer_config.get("chat_template", str)
    entries = tokenizer_config.tables("chat_template")
    named = {entry.need("name", str): entry.need("template", str) for entry in entries}
    if named and "default" not in named:
        notes.append(no_default(tokenizer_config.place, named))
    return named.get("default")


def _read(path: Path) -> Settings | None:
    return settings.read(path, SourceError) if path.is_file() else None


def _tokenizer_config(folder: Path, config: Settings | None) -> bytes | Path:
    """tokenizer_config.json with the special tokens of special_tokens_map.json, which transformers reads
    where there is no added_tokens_decoder."""
    given: dict[str, Any] = {} if config is None else dict(config.values)
    special = _read(folder / "special_tokens_map.json")
    if special and "added_tokens_decoder" not in given:
        tokens = {name: text for name in SPECIAL_NAMES if (text := _token(special, name)) is not None}
        if any(given.get(name) != text for name, text in tokens.items()):
            return json_bytes(given | tokens)
    return json_bytes({}) if config is None else folder / "tokenizer_config.json"


def _token(special: Settings, name: str) -> str | None:
    """A special token's text: it stands there itself, or in an object as `content`."""
    if isinstance(special.values.get(name), dict):
        return special.table(name).need("content", str)
    return special.get(name, str)


def _generation_config(folder: Path, config: Settings) -> bytes | Path:
    """generation_config.json with the end tokens of config.json: one too many costs nothing, one that is
    missing lets an answer run on."""
    generation = _read(folder / "generation_config.json")
    ends = _ends(config)
    if generation is None:
        return json_bytes({key: config[key] for key in _IDS if key in config})
    own = _ends(generation)
    if set(ends) <= set(own):
        return folder / "generation_config.json"
    return json_bytes({**generation.values, "eos_token_id": list(dict.fromkeys([*own, *ends]))})


def _ends(config: Settings) -> list[int]:
    """The ids of a config's end tokens; −1 is how some say that there is none."""
    ids = config.one_or_more("eos_token_id", int, low=-1, high=_LARGEST_ID)
    return [number for number in ids if number >= 0]
