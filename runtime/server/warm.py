"""Prompts that are read before anybody asks: a system message with tools costs its reading at the start.

A file holds a request as it would be posted to /v1/chat/completions (messages, tools …), or a plain text.
What all questions after those messages begin with is read, not a token more.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from flatlm.runtime import settings
from flatlm.runtime.errors import FlatlmError, UsageError
from flatlm.runtime.generation.answer import Prompt
from flatlm.runtime.generation.sequence import common_start
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.server.asks import asked, chat_ids, encoded, openai_chat
from flatlm.runtime.server.orders import completed
from flatlm.runtime.server.shop import Shop
from flatlm.runtime.server.tickets import Asked

LOG = logging.getLogger("flatlm.server")


def prefix_of(data: bytes, name: str, llm: LLM) -> list[int]:
    """The ids that a file's prompt begins with, whatever is asked after it. Raises UsageError and others."""
    if not data.lstrip().startswith(b"{"):
        try:
            return encoded(data.decode(), llm)
        except UnicodeDecodeError as error:
            raise UsageError(f"--warm {name}: {error}", param="warm") from None
    chat = openai_chat(settings.parse(data, name, UsageError, "give a request, or a text"))
    if chat.messages[-1]["role"] == "user":
        return chat_ids(chat, llm)
    asks = [[*chat.messages, {"role": "user", "content": text}] for text in ("A", "7")]
    one, two = (chat_ids(dataclasses.replace(chat, messages=each, continued=False), llm) for each in asks)
    return one[: common_start(one, two)]


async def warm(shop: Shop, files: Sequence[str]) -> None:
    """Read the prompts of `files` with the first model; what goes wrong is logged."""
    for name in files:
        try:
            host = await shop.ready(shop.first)
            llm = host.opened

            def read(name: str = name, llm: LLM = llm) -> Asked:
                ids = prefix_of(Path(name).read_bytes(), name, llm)
                return asked(Prompt(ids, SamplingOptions(n=0)), llm)

            one = await shop.on_text(read)
            order = shop.desk.order(host, [one])
            (answer,) = await completed(order)
            held, all_ = answer.timings.reused_tokens, answer.timings.prompt_tokens
            LOG.info("%s is warm: read %d of %d tokens (%d held)", name, all_ - held, all_, held)
        except (FlatlmError, OSError) as error:
            LOG.error("--warm %s: %s", name, error)
        except asyncio.CancelledError:
            return
