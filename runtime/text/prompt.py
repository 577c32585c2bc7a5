"""Messages to a prompt: the model's own chat template, rendered as transformers renders it.

A template comes with a downloaded model, so it is untrusted code: it runs in jinja2's immutable sandbox and
sees only plain JSON values.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatlm.kernels_arm.files import read_text
from flatlm.runtime.errors import BackendError, ContextError, TemplateError, UsageError
from flatlm.runtime.text.limits import MOST_TEXT, limited
from flatlm.runtime.text.tokenizer import read_json

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]  # {"role": "user", "content": "…"}, as in Hugging Face's and OpenAI's interfaces

OLDEST_JINJA = (3, 1, 6)  # older sandboxes have known ways out (CVE-2024-56326, CVE-2025-27516)
MOST_REASON = 500  # characters of what a template says of its own accord
MOST_TEMPLATE = 2**20  # characters; published ones have some 10,000
INSTALL = "pip install flatlm[chat]"


def load_template(folder: str | Path) -> str | None:
    """The chat template of a folder: chat_template.jinja, else from tokenizer_config.json, else None.

    Raises TemplateError where it cannot be read, TokenizerError where tokenizer_config.json is no object.
    """
    folder = Path(folder)
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return read_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"{path} cannot be read ({error}); export or copy the model again") from None
    config = dataclasses.replace(read_json(folder / "tokenizer_config.json"), error=TemplateError)
    if isinstance(config.values.get("chat_template"), list):  # several, by name
        named = {one.get("name", str): one.get("template", str) for one in config.tables("chat_template")}
        return named.get("default")
    return config.get("chat_template", str)


def render(
    template: str,
    messages: Sequence[Message],
    *,
    special: Mapping[str, str] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The prompt for `messages`. `special` are the special tokens by name (bos_token, eos_token …).

    Raises TemplateError where the template is wrong, refuses the messages, wants more than it may (limits.py)
    or tries to leave the sandbox; ContextError for messages that no context holds; UsageError where they
    are no list of {role, content} objects; BackendError where jinja2 is missing or too old.
    """
    chat, plain_tools = plain(messages), plain(tools)
    for message in chat:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UsageError(f"a message must be an object with role and content, not {message!r:.80}")
    compiled = _compile(template)
    try:
        with limited():
            return compiled.render(
                messages=chat,
                tools=plain_tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **(special or {}),
            )
    except Exception as error:  # noqa: BLE001  a template can fail in any way Python can; none of them is our bug
        raise TemplateError(
            f"the chat template failed: {_reason(error)}; use --raw to go without it"
        ) from None


def without_template(messages: Sequence[Message]) -> str:
    """The prompt of a model without a chat template: one message as it is, several with their roles."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    lines = [f"{message['role']}: {message['content']}" for message in messages]
    return "\n".join([*lines, "assistant:"])


def plain(value: Any) -> Any:
    """`value` rebuilt of JSON's own types, so that a template can reach no object of ours."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        if len(text) > MOST_TEXT:
            raise ContextError(f"messages and tools of {len(text)} characters: no context holds that")
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"messages and tools must be plain JSON values ({error})") from None


def _reason(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    text = " ".join(str(error)[:MOST_REASON].split()) or "no reason given"
    return f"{type(error).__name__}: {text}" + (f" (line {line})" if line else "")


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = _environment()
    if len(template) > MOST_TEMPLATE:
        raise TemplateError(f"the chat template has more than {MOST_TEMPLATE} characters; use --raw")
    try:
        return environment.from_string(template)
    except Exception as error:  # noqa: BLE001  TemplateSyntaxError, and RecursionError for a hostile one
        raise TemplateError(f"the chat template cannot be read: {_reason(error)}; use --raw") from None


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    try:
        import jinja2
    except ImportError:
        raise BackendError(f"chat templates need jinja2: {INSTALL}, or use --raw") from None
    if _version(jinja2.__version__) < OLDEST_JINJA:
        needed = ".".join(map(str, OLDEST_JINJA))
        raise BackendError(
            f"jinja2 {jinja2.__version__} is unsafe for chat templates, {needed} is needed: {INSTALL}"
        )
    from flatlm.runtime.text.sandbox import environment

    return environment()


def _version(text: str) -> tuple[int, ...]:
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in text.split(".")[:3])
