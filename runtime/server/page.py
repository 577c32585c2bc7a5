"""The chat page: one file that asks nobody but this server, under a policy that lets it do nothing else."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

from starlette.responses import PlainTextResponse, Response

from flatlm.runtime.server.shop import Call

PAGE = Path(__file__).with_name("page.html")
LIFETIME = "no-cache"  # asked for again each time: it goes with the server's version


@functools.lru_cache(maxsize=1)
def read() -> tuple[bytes, dict[str, str]]:
    """The page and its headers. Its script and style are allowed by their hashes, and nothing else is."""
    text = PAGE.read_text(encoding="utf-8")
    script, style = (_hash(text, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Cache-Control": LIFETIME, "Referrer-Policy": "no-referrer"}
    return text.encode(), headers


def _hash(text: str, tag: str) -> str:
    (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digest = hashlib.sha256(inside.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


async def index(call: Call) -> Response:
    """The page for browsers; for who only wants to know whether it is there, what Ollama says at /."""
    browser = "text/html" in call.request.headers.get("accept", "")
    if call.shop.options.no_ui or not browser:
        return PlainTextResponse("Ollama is running")
    page, headers = read()
    return Response(page, headers=headers, media_type="text/html")
