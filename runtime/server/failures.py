"""Errors on the wire: one table from the error tree to HTTP, and the body each protocol gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flatlm.runtime.errors import (
    BackendError,
    ContextError,
    FlatlmError,
    ResourceError,
    TemplateError,
    UsageError,
)


class HTTPError(UsageError):
    """A refusal with an HTTP status of its own."""

    status = 400

    def __init__(self, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message, param=param)
        self.headers = dict(headers or {})


class Unauthorized(HTTPError):
    status, code = 401, "invalid_api_key"


class Forbidden(HTTPError):
    status, code = 403, "forbidden"


class NotFound(HTTPError):
    status, code = 404, "not_found"


class WrongMethod(HTTPError):
    status, code = 405, "method_not_allowed"


class TooLarge(HTTPError):
    status, code = 413, "body_too_large"


class NotSupported(HTTPError):
    status, code = 501, "not_supported"


class Busy(HTTPError):
    status, code = 503, "queue_full"


class LateError(HTTPError):
    status, code = 504, "answer_timeout"


class SlowBody(HTTPError):
    status, code = 408, "body_timeout"


class LongPrompt(ContextError):
    """A prompt that no context of this server holds."""

    def __init__(self, tokens: int, context: int) -> None:
        super().__init__(
            f"the request ({tokens} tokens) exceeds the available context size ({context} tokens): shorten "
            "it or start the server with a larger --ctx",
            param="prompt",
        )
        self.tokens, self.context = tokens, context


STATUS: tuple[tuple[type[BaseException], int], ...] = (  # the first that fits
    (UsageError, 400),
    (TemplateError, 400),
    (ContextError, 400),
    (BackendError, 501),
    (ResourceError, 503),
)
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "not_found_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
    504: "server_error",
}
ANTHROPIC_TYPES = {
    500: "api_error",
    501: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    413: "request_too_large",
}


def status_of(error: BaseException) -> int:
    """The HTTP status of an error; 500 for what nobody foresaw."""
    if isinstance(error, HTTPError):
        return error.status
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def headers_of(error: BaseException) -> dict[str, str]:
    headers = dict(error.headers) if isinstance(error, HTTPError) else {}
    if status_of(error) == 503:
        headers.setdefault("Retry-After", "1")
    return headers


def words_of(error: BaseException) -> str:
    """What the client is told; of an unexpected error its class only, for texts may be in it."""
    if isinstance(error, FlatlmError):
        return str(error)
    return f"internal error ({type(error).__name__}); the server's log says more"


def openai_body(error: BaseException) -> dict[str, Any]:
    """OpenAI's, with what llama.cpp adds: `code` is the HTTP status there, and a number here too."""
    status = status_of(error)
    body = {
        "code": status,
        "message": words_of(error),
        "type": "exceed_context_size_error" if isinstance(error, ContextError) else TYPES[status],
        "param": error.param if isinstance(error, FlatlmError) else None,
    }
    if isinstance(error, LongPrompt):
        body |= {"n_prompt_tokens": error.tokens, "n_ctx": error.context}
    return {"error": body}


def ollama_body(error: BaseException) -> dict[str, Any]:
    return {"error": words_of(error)}


def anthropic_body(error: BaseException) -> dict[str, Any]:
    status = status_of(error)
    kind = ANTHROPIC_TYPES.get(status, TYPES[status])
    return {"type": "error", "error": {"type": kind, "message": words_of(error)}}


def body_of(error: BaseException, path: str) -> bytes:
    """The body for who asked for `path`."""
    if path.startswith("/api/"):
        body = ollama_body(error)
    elif path.startswith("/v1/messages"):
        body = anthropic_body(error)
    else:
        body = openai_body(error)
    return json.dumps(body, ensure_ascii=False).encode()
