"""A model behind an OpenAI-compatible server, as a decoding method of `medusa bench`.

Answers are streamed, so that the time of the first token is known. Their tokens are those that the
server counts: a piece of a stream may hold several tokens, or none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx2
from pydantic import BaseModel, Field

from ..data.turns import Messages
from ..files import parse_json
from ..training.chat_server import ChatServer, Message, chat_request, message_of
from .methods import Method, Run

END = "[DONE]"
"""The last event of a stream."""
LARGEST_SEED = 2**31
"""Seeds are below it: some servers read them as signed 32-bit integers."""


class Usage(BaseModel):
    """The server's count of tokens."""

    completion_tokens: int


class Choice(BaseModel):
    """A piece of an answer."""

    delta: Message = Message()


class Piece(BaseModel):
    """An event of a stream; unknown fields are ignored."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None

    @property
    def text(self) -> str:
        """The piece of the answer."""
        return "".join(choice.delta.text for choice in self.choices or ())

    @property
    def holds_tokens(self) -> bool:
        """True if the piece has a part of the answer, or of the reasoning before it."""
        return any(choice.delta.text or choice.delta.thought for choice in self.choices or ())


class ModelName(BaseModel):
    """A model in a server's list."""

    id: str


class ModelList(BaseModel):
    """A reply to /models."""

    data: list[ModelName] = Field(min_length=1)


class ServedModel:
    """A model behind a server.

    Args:
        server: the server; its timeout limits the time between two parts of a reply.
        model: name of the model on the server; by default the only one that it has.

    Raises:
        ConnectionError: the server cannot be reached.
        ValueError: the server has several models, or does not name them.
    """

    def __init__(self, server: ChatServer, model: str | None = None):
        self.server = server
        # made once, because a client that verifies certificates takes long to make
        self._client = httpx2.Client(**server.client_options(silence=server.timeout))
        self.model = model or self._only_model()

    def asked(self, messages: Messages, seed: int) -> Method:
        """Return the method that asks the server for the next turn of a conversation."""

        def ask(_model: Any, _prompt: Any, arguments: dict[str, Any]) -> Run:
            body = chat_request(
                self.model,
                messages,
                max_tokens=arguments["max_new_tokens"],
                temperature=arguments.get("temperature", 0.0),
                seed=seed % LARGEST_SEED,
            )
            return self._answer({**body, "stream": True, "stream_options": {"include_usage": True}})

        return ask

    def _answer(self, body: dict[str, Any]) -> Run:
        """Return the answer to a request.

        Raises:
            ConnectionError: the server cannot be reached.
            ValueError: the server refuses the request, or its reply is no stream with a count of
                the tokens.
        """
        first, text, usage = None, "", None
        started = time.perf_counter()
        for piece in self._pieces(body):
            if first is None and piece.holds_tokens:
                first = time.perf_counter()
            text += piece.text
            usage = piece.usage or usage
        ended = time.perf_counter()
        if usage is None:
            raise ValueError(
                f"{self.server.address} sent no `usage` in its stream, so that the tokens of an "
                "answer are not known: bench needs a server with `stream_options.include_usage`"
            )
        if usage.completion_tokens < 1:
            raise ValueError(f"{self.server.address} gave an answer without tokens")
        first = ended if first is None else first
        counted = usage.completion_tokens
        return Run([], 0, first - started, ended - first, text=text, counted=counted)

    def _pieces(self, body: dict[str, Any]) -> Iterator[Piece]:
        """Send a request and yield the pieces of the reply."""
        place = f"{self.server.address}: a piece of the stream"
        try:
            with self._client.sse(self.server.chat_url, method="POST", json=body) as events:
                self._check_status(events.response)
                for event in events:
                    if event.data == END:
                        return
                    piece = parse_json(event.data.encode(), Piece, place, "the piece")
                    if piece.error is not None:
                        raise ValueError(f"{self.server.address} failed: {piece.error}")
                    yield piece
        except httpx2.HTTPError as error:
            raise self._failure(error) from None

    def _only_model(self) -> str:
        """Return the name of the only model on the server."""
        try:
            response = self._client.get(f"{self.server.address}/models")
            self._check_status(response)
        except httpx2.HTTPError as error:
            raise self._failure(error) from None
        place = f"{self.server.address}/models"
        names = [each.id for each in parse_json(response.content, ModelList, place, "it").data]
        if len(names) > 1:
            raise ValueError(
                f"{self.server.address} has several models: add one of them, model={names[0]} say "
                f"({', '.join(names)})"
            )
        return names[0]

    def _check_status(self, response: httpx2.Response) -> None:
        if not response.is_success:
            raise self.server.refusal(response.status_code, response.read())

    def _failure(self, error: Exception) -> Exception:
        """Return the error that says what went wrong with a request."""
        if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)):
            return ConnectionError(f"{self.server.address}: no connection ({message_of(error)})")
        if isinstance(error, httpx2.ReadTimeout):
            return ValueError(
                f"{self.server.address} sent nothing for {self.server.timeout:g} seconds"
            )
        return ValueError(f"{self.server.address} sent a broken reply: {message_of(error)}")
