"""Address, key, requests and refusals of an OpenAI-compatible server, for all of its clients."""

from __future__ import annotations

import os
from typing import Any

import httpx2
from pydantic import BaseModel

from ..data.turns import Messages

CONNECT_TIMEOUT = 30.0
"""Time limit for a connection, in seconds."""


class Part(BaseModel):
    """A part of a message's content; only text is supported."""

    text: str


class Message(BaseModel):
    """The message of a reply, or its next piece.

    Servers name the reasoning before the answer `reasoning_content` or `reasoning`.
    """

    content: str | list[Part] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        """The content as text; empty if there is none."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def thought(self) -> str | None:
        """The reasoning, if there is any."""
        return self.reasoning_content or self.reasoning


class ChatServer:
    """An OpenAI-compatible server.

    Args:
        address: address of the API with its version, such as http://localhost:8000/v1.
        key: API key, sent as a bearer token; by default the environment variable OPENAI_API_KEY.
        timeout: time limit in seconds; each client says what it limits.

    Raises:
        ValueError: the address, the key or the timeout is invalid.
    """

    def __init__(self, address: str, key: str | None = None, timeout: float = 600):
        self.address = _check_address(address)
        self.key = (key or os.environ.get("OPENAI_API_KEY") or "").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise ValueError(
                "the server's key (OPENAI_API_KEY) has characters that a header cannot hold"
            )
        if not timeout > 0:
            raise ValueError(f"a server's timeout must be positive, got {timeout}")
        self.timeout = timeout

    @property
    def chat_url(self) -> str:
        """Address to which requests for chat completions go."""
        return f"{self.address}/chat/completions"

    def client_options(self, silence: float | None = None) -> dict[str, Any]:
        """Return arguments of an HTTP client, in which each request has its own connection.

        A server may close an idle connection at the very moment when a request is sent on it.

        Args:
            silence: seconds in which the next part of a reply must come; None is no limit.
        """
        return {
            "headers": {
                "Connection": "close",
                **({"Authorization": f"Bearer {self.key}"} if self.key else {}),
            },
            "timeout": httpx2.Timeout(silence, connect=min(CONNECT_TIMEOUT, self.timeout)),
            "limits": httpx2.Limits(max_keepalive_connections=0),
        }

    def refusal(self, status: int, reply: bytes) -> ValueError:
        """Return the error of a reply with an HTTP status that is no success."""
        return ValueError(f"{self.address} refuses it with status {status}: {beginning(reply)}")


def chat_request(
    model: str, chat: Messages, *, max_tokens: int, temperature: float, seed: int
) -> dict[str, Any]:
    """Return the body of a request for the next turn of a chat."""
    return {
        "model": model,
        # Reasoning of earlier turns is not sent: models are not trained on it, and some servers
        # refuse it.
        "messages": [
            {name: value for name, value in turn.items() if name != "reasoning_content"}
            for turn in chat
        ],
        "temperature": temperature,
        "max_tokens": max_tokens,
        "seed": seed,
    }


def beginning(reply: bytes) -> str:
    """Return the beginning of a reply, for an error."""
    return reply[:300].decode(errors="replace")


def message_of(error: Exception) -> str:
    """Return an error's text, or its type where it has none."""
    return str(error) or type(error).__name__


def _check_address(address: str) -> str:
    """Return a server's address without a slash at its end.

    Raises:
        ValueError: it is not an HTTP address with a host.
    """
    try:
        url = httpx2.URL(address)
    except httpx2.InvalidURL as error:
        raise ValueError(f"{address!r} is not a server's address: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            f"a server's address begins with http:// or https:// and a host, got {address!r}"
        )
    return address.rstrip("/")
