"""The application: which path is answered by what, errors as bodies, a line of log for each request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from flatlm.runtime.errors import FlatlmError
from flatlm.runtime.server import anthropic, llamacpp, ollama, openai, page, responses
from flatlm.runtime.server.failures import HTTPError, NotFound, WrongMethod, body_of, headers_of, status_of
from flatlm.runtime.server.guard import Access, Guard
from flatlm.runtime.server.openapi import document
from flatlm.runtime.server.shop import Call, Shop
from flatlm.runtime.server.warm import warm
from flatlm.runtime.server.wire import GoneError, reply

Handler = Callable[[Call], Awaitable[Response]]
QUIET = ("/health", "/v1/health", "/metrics")  # asked every few seconds by those who watch
LOG = logging.getLogger("flatlm.server")


class Endpoint(NamedTuple):
    """A path, what answers it, and what it is for (docs and /openapi.json say it)."""

    method: str
    path: str
    handler: Handler
    summary: str


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("POST", "/v1/chat/completions", openai.chat_completions, "OpenAI: answer messages"),
    Endpoint("POST", "/chat/completions", openai.chat_completions, "OpenAI: answer messages"),
    Endpoint(
        "POST", "/v1/chat/completions/input_tokens", openai.input_tokens, "llama.cpp: length of a prompt"
    ),
    Endpoint("POST", "/v1/completions", openai.completions, "OpenAI: continue a text"),
    Endpoint("GET", "/v1/models", openai.models, "OpenAI: the models"),
    Endpoint("GET", "/models", openai.models, "OpenAI: the models"),
    Endpoint("GET", "/v1/models/{name:path}", openai.model, "OpenAI: one model"),
    Endpoint("POST", "/v1/embeddings", openai.embeddings, "OpenAI: refused, with the reason"),
    Endpoint("POST", "/v1/responses", responses.responses, "OpenAI: answer an input"),
    Endpoint("POST", "/responses", responses.responses, "OpenAI: answer an input"),
    Endpoint("POST", "/v1/responses/input_tokens", responses.input_tokens, "OpenAI: length of an input"),
    Endpoint("POST", "/v1/messages", anthropic.messages, "Anthropic: answer messages"),
    Endpoint("POST", "/v1/messages/count_tokens", anthropic.count_tokens, "Anthropic: length of a prompt"),
    Endpoint("POST", "/completion", llamacpp.completion, "llama.cpp: continue a text"),
    Endpoint("POST", "/completions", llamacpp.completion, "llama.cpp: continue a text"),
    Endpoint("POST", "/tokenize", llamacpp.tokenize, "llama.cpp: a text as ids"),
    Endpoint("POST", "/detokenize", llamacpp.detokenize, "llama.cpp: ids as a text"),
    Endpoint("POST", "/apply-template", llamacpp.apply_template, "llama.cpp: messages as a prompt"),
    Endpoint("GET", "/props", llamacpp.props, "llama.cpp: what is served and how"),
    Endpoint("GET", "/slots", llamacpp.slots, "llama.cpp: what each slot does"),
    Endpoint("GET", "/metrics", llamacpp.metrics, "Prometheus' counters"),
    Endpoint("GET", "/health", llamacpp.health, "whether the model is loaded"),
    Endpoint("GET", "/v1/health", llamacpp.health, "whether the model is loaded"),
    Endpoint("GET", "/", page.index, "the chat page; to programs, that Ollama's API is there"),
    Endpoint("GET", "/api/version", ollama.version, "Ollama: the version of its API"),
    Endpoint("GET", "/api/tags", ollama.tags, "Ollama: the models"),
    Endpoint("GET", "/api/ps", ollama.ps, "Ollama: the models that are loaded"),
    Endpoint("POST", "/api/show", ollama.show, "Ollama: a model"),
    Endpoint("POST", "/api/chat", ollama.chat, "Ollama: answer messages"),
    Endpoint("POST", "/api/generate", ollama.generate, "Ollama: answer a text"),
    Endpoint("POST", "/api/pull", ollama.pull, "Ollama: nothing to do for a model that is served"),
    Endpoint("POST", "/api/embed", ollama.embed, "Ollama: refused, with the reason"),
    Endpoint("POST", "/api/embeddings", ollama.embed, "Ollama: refused, with the reason"),
    Endpoint("POST", "/embeddings", openai.embeddings, "OpenAI: refused, with the reason"),
)


async def openapi(call: Call) -> Response:
    return reply(document(ENDPOINTS))


ENDPOINTS = (*ENDPOINTS, Endpoint("GET", "/openapi.json", openapi, "this document"))


def application(shop: Shop, access: Access) -> ASGIApp:
    """The ASGI application; the engine starts and stops with it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        shop.engine.start()
        shop.engine.call(lambda: shop.engine.open(shop.first)).add_done_callback(log_failure)
        warming = asyncio.create_task(warm(shop, shop.options.warm))
        yield
        warming.cancel()
        shop.engine.stop()
        shop.texts.shutdown(wait=False)

    routes = [Route(one.path, bound(shop, one.handler), methods=[one.method]) for one in ENDPOINTS]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: unknown_path})
    return Guard(app, access)


def log_failure(done: object) -> None:
    """The first model could not be opened: requests are told why, the log now."""
    error = getattr(done, "exception", lambda: None)()
    if error is not None:
        LOG.error("the model could not be opened: %s", error)


def bound(shop: Shop, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """`handler` with errors as responses; unexpected ones are logged with their traceback."""

    async def handle(request: Request) -> Response:
        started, call = time.monotonic(), Call(shop, request)
        try:
            response = await handler(call)
        except GoneError:
            LOG.info("%s: the client went away", asked_for(request))
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001  each becomes a body, and the unexpected a traceback in the log
            response = failure(error, request)
        finally:
            call.release()
        seconds = time.monotonic() - started
        level = logging.DEBUG if request.url.path in QUIET else logging.INFO
        LOG.log(level, "%s %d %.3f s", asked_for(request), response.status_code, seconds)
        return response

    return handle


def asked_for(request: Request) -> str:
    """For the log: a path may hold any character, and a line stays a line."""
    return f"{request.method} {request.url.path}".encode("unicode_escape").decode("ascii")[:200]


def failure(error: Exception, request: Request) -> Response:
    if not isinstance(error, FlatlmError):
        LOG.error("%s failed", asked_for(request), exc_info=error)
    elif not (isinstance(error, HTTPError) or request.url.path in QUIET):
        LOG.info("%s refused: %s", asked_for(request), " ".join(str(error).split()))
    body = body_of(error, request.url.path)
    return Response(body, status_of(error), headers_of(error), "application/json")


async def unknown_path(request: Request, error: Exception) -> Response:
    """Starlette's 404 and 405, in the words of the protocol."""
    assert isinstance(error, HTTPException)
    what, allowed = f"{request.method} {request.url.path} is not answered here", dict(error.headers or {})
    told: HTTPError = NotFound(what)
    if error.status_code == WrongMethod.status:
        told = WrongMethod(f"{what}: ask by {allowed.get('Allow', 'another method')}")
    body = body_of(told, request.url.path)
    return Response(body, error.status_code, allowed, "application/json")
