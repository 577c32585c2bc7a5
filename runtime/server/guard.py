"""Who may ask: the Host and Origin of a request and its key, looked at before anything of it is read.

A web page that somebody opens can reach servers on their machine: by its own name that points to 127.0.0.1
(then Host is foreign) or by a request to another origin (then Origin is). Both are refused unless allowed.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flatlm.runtime.server.failures import Forbidden, HTTPError, Unauthorized, body_of

OPEN = frozenset(
    {"/health", "/v1/health", "/", "/index.html", "/favicon.ico"}
)  # no key: nothing is told there
METHODS = "GET, POST, DELETE, OPTIONS"


@dataclass(frozen=True)
class Access:
    """What is allowed. `keys`: none means that nobody needs one. `hosts`: names beside the obvious ones."""

    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def check(self, path: str, headers: Headers) -> None:
        """Raises Forbidden or Unauthorized."""
        host = headers.get("host", "")
        if host and not self._host_allowed(host):
            raise Forbidden(
                f"the host {host!r:.100} is not this server's: start it with --allowed-host NAME to allow it"
            )
        origin = headers.get("origin")
        if origin is not None and not self.allows_origin(origin) and _parsed(origin).netloc != host:
            raise Forbidden(f"pages of {origin!r:.100} may not ask here: allow them with --cors-origins")
        if self.keys and path not in OPEN and not self._has_key(headers):
            raise Unauthorized("Invalid API Key: send one as `Authorization: Bearer KEY`")

    def _host_allowed(self, given: str) -> bool:
        name = (_parsed(f"//{given}").hostname or "").rstrip(".")
        if name == "localhost" or name.endswith((".localhost", ".local")) or name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def allows_origin(self, origin: str) -> bool:
        return "*" in self.origins or origin in self.origins

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        found = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in self.keys]
        return any(found)  # all were compared: the time tells nothing


def cors_headers(access: Access, headers: Headers) -> Mapping[str, str]:
    """What lets a page of an allowed origin read the response; nothing for others."""
    origin = headers.get("origin")
    if origin is None or not access.allows_origin(origin):
        return {}
    return {
        "Access-Control-Allow-Origin": "*" if "*" in access.origins else origin,
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "*"),
        "Vary": "Origin",
    }


class Guard:
    """The ASGI application `app` behind `access`."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        extra = cors_headers(self._access, headers)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                found.setdefault("X-Content-Type-Options", "nosniff")
                for name, value in extra.items():
                    found[name] = value
            await send(message)

        if scope["method"] == "OPTIONS" and "origin" in headers:
            await Response(status_code=200 if extra else 403)(scope, receive, send_with_headers)
            return
        try:
            self._access.check(scope["path"], headers)
        except HTTPError as error:
            body, fields = body_of(error, scope["path"]), dict(error.headers)
            if error.status == 401:
                fields["WWW-Authenticate"] = "Bearer"
            refusal = Response(body, error.status, fields, "application/json")
            await refusal(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


def _parsed(address: str) -> SplitResult:
    """The parts of an address; none where it is none."""
    try:
        return urlsplit(address)
    except ValueError:  # brackets that do not close
        return urlsplit("")
