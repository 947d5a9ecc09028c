"""The server's routes."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from ..loading import MedusaModel
from . import errors
from .chat import begin_chat
from .chat_fields import ChatRequest
from .completions import CompletionRequest, begin_completion
from .description import ANSWER, ANTHROPIC_ERRORS, ERRORS, HEALTH
from .errors import ApiError
from .guard import Guard
from .messages import begin_message, count_tokens
from .messages_fields import CountRequest, MessagesRequest
from .responses import begin_response
from .responses_fields import ResponsesRequest
from .server import Server
from .settings import ServerSettings

PAGE = Path(__file__).parent / "page"


def create_app(model: MedusaModel, tokenizer: Any, settings: ServerSettings) -> FastAPI:
    """Return the ASGI application that serves a model.

    Args:
        model: decodes the answers; the application steps it in a thread of its own. On a CPU, call
            this function, and load the model, with `runtime.threads.in_passing_thread`.
        tokenizer: the model's.
    """
    server = Server(model, tokenizer, settings)
    app = FastAPI(
        title="medusa",
        version=version("medusa-decoding"),
        lifespan=server.lifespan,
        middleware=_middleware(settings),
        exception_handlers={
            ApiError: errors.on_api_error,
            RequestValidationError: errors.on_invalid,
            HTTPException: errors.on_http_error,
        },
    )
    app.state.server = server
    _add_answers(app, server)
    _add_facts(app, server)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


def _middleware(settings: ServerSettings) -> list[Middleware]:
    found = [Middleware(Guard, settings=settings)]
    if settings.origins:
        origins = list(settings.origins)
        cors = Middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
        )
        found.insert(0, cors)
    return found


def _add_answers(app: FastAPI, server: Server) -> None:
    @app.post("/v1/chat/completions", responses={**ANSWER, **ERRORS})
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await server.reply(begin_chat, body, request)

    @app.post("/v1/completions", responses={**ANSWER, **ERRORS})
    async def completion(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        return await server.reply(begin_completion, body, request)

    @app.post("/v1/responses", responses={**ANSWER, **ERRORS})
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """Answer a conversation in OpenAI's newer protocol."""
        return await server.reply(begin_response, body, request)

    @app.post("/v1/messages", responses={**ANSWER, **ANTHROPIC_ERRORS})
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """Answer a conversation in Anthropic's protocol."""
        return await server.reply(begin_message, body, request)

    @app.post("/v1/messages/count_tokens", responses=ANTHROPIC_ERRORS)
    async def count(body: CountRequest) -> dict[str, int]:
        """Return the number of tokens of a conversation."""
        return await server.begun(count_tokens, body)


def _add_facts(app: FastAPI, server: Server) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the models."""
        return server.models()

    @app.get("/health", responses=HEALTH)
    async def health() -> Response:
        """Say whether the server takes requests."""
        return server.health()

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the figures for Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        """Return the page to talk to the model and watch it decode."""
        return FileResponse(PAGE / "index.html")
