"""An OpenAI-compatible server answers conversations, several at a time.

Requests run in an event loop of a daemon thread, so that whoever waits for outcomes can stop at
once (Ctrl-C).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import queue
import random
import socket
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
from pydantic import BaseModel, Field

from ..files import parse_json
from .conversations import Ask, Conversation, Outcome, Settings, Turn

TRIES = 6
"""How often a request is sent before its conversation is given up."""
PAUSE = 1.0
"""Seconds before the second try; each further pause is twice as long. Up to a second is added by
chance.
"""
LONGEST_PAUSE = 60.0
"""Most seconds between two tries, whatever the server asks for (Retry-After)."""
CONNECTING = 30.0
"""Seconds in which a connection must stand."""
LARGEST_REPLY = 16 << 20
"""Most bytes of a reply that are read."""
BUSY = (408, 409, 425, 429)
"""Statuses besides 5xx that say to try again."""
CUT = ("length", "content_filter")
"""Finish reasons of an answer that the model itself did not end."""
THREAD = "medusa requests"
"""Name of the threads that requests run in."""


class Part(BaseModel):
    """A part of a message's content; only text is understood."""

    text: str


class Message(BaseModel):
    """The message of a reply. Servers call what a model thought first `reasoning_content` or
    `reasoning`.
    """

    content: str | list[Part] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(BaseModel):
    """An answer of a reply."""

    message: Message
    finish_reason: str | None = None


class Reply(BaseModel):
    """A reply to /chat/completions, as far as it is read; unknown fields are ignored."""

    choices: list[Choice] = Field(min_length=1)
    usage: Any = None

    def turn(self) -> Turn:
        """Return the first answer."""
        message, content = self.choices[0].message, self.choices[0].message.content
        text = (
            "".join(part.text for part in content) if isinstance(content, list) else content or ""
        )
        count = self.usage.get("completion_tokens") if isinstance(self.usage, dict) else None
        tokens = count if isinstance(count, int) else 0
        reasoning = message.reasoning_content or message.reasoning
        return Turn(text.strip(), tokens, self.choices[0].finish_reason in CUT, reasoning)


class _TryAgainError(Exception):
    """A request that did not succeed and may at the next try.

    Args:
        after: what the server says of when to try again (Retry-After).
        away: no connection was made.
    """

    def __init__(self, why: str, after: str = "", away: bool = False):
        super().__init__(why)
        self.after, self.away = after, away


class Server:
    """Lets an OpenAI-compatible server answer.

    Args:
        address: up to and with the version, such as http://localhost:8000/v1.
        key: sent as bearer token; OPENAI_API_KEY by default.
        in_flight: conversations at once.
        timeout: seconds in which a whole reply must have come.

    Raises:
        ValueError: address, key or timeout cannot be used, or the model is to ask itself.
    """

    def __init__(
        self,
        address: str,
        settings: Settings,
        key: str | None = None,
        in_flight: int = 8,
        timeout: float = 600,
    ):
        if settings.self_talk:
            raise ValueError(
                "--self-talk lets the model write the user's turns, which a chat server does not do"
            )
        self.address, self.settings = _checked(address), settings
        self.key = (key or os.environ.get("OPENAI_API_KEY") or "").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise ValueError(
                "the server's key (OPENAI_API_KEY) has characters that a header cannot hold"
            )
        if not timeout > 0:
            raise ValueError(f"a server's timeout must be positive, got {timeout}")
        self.in_flight, self.timeout = in_flight, timeout

    def drive(
        self, conversations: Sequence[tuple[str, Conversation]]
    ) -> Generator[Outcome, None, None]:
        """Yield the outcome of each conversation; one that is refused costs no other.

        Raises:
            ConnectionError: the server cannot be reached.
        """
        outcomes: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
        work = _Background(self._all(conversations, outcomes.put))
        try:
            for _ in conversations:
                outcome = outcomes.get()
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
        finally:
            work.stop()

    async def _all(
        self,
        conversations: Sequence[tuple[str, Conversation]],
        report: Callable[[Outcome | Exception], None],
    ) -> None:
        waiting = iter(conversations)

        async def one_after_another(client: httpx2.AsyncClient) -> None:
            for name, each in waiting:
                report(await self._whole(client, name, each))

        try:
            async with self._client() as client:
                talks = [
                    asyncio.create_task(one_after_another(client)) for _ in range(self.in_flight)
                ]
                try:
                    await asyncio.gather(*talks)
                finally:
                    for talk in talks:
                        talk.cancel()
                    await asyncio.gather(*talks, return_exceptions=True)
        except Exception as error:
            report(error)

    def _client(self) -> httpx2.AsyncClient:
        # A connection serves one request: a server may close one that waits just when the next
        # request is sent.
        return httpx2.AsyncClient(
            headers={
                "Connection": "close",
                **({"Authorization": f"Bearer {self.key}"} if self.key else {}),
            },
            timeout=httpx2.Timeout(
                None, connect=min(CONNECTING, self.timeout)
            ),  # `answer` limits the whole
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    async def _whole(self, client: httpx2.AsyncClient, name: str, talking: Conversation) -> Outcome:
        """Hold a conversation to its end, or to the first request that is refused."""
        ask, tokens = next(talking), 0
        while True:
            try:
                turn = await self.answer(client, ask)
            except ValueError as error:
                return Outcome(name, error, tokens)
            tokens += turn.tokens
            try:
                ask = talking.send(turn)
            except StopIteration as ended:
                return Outcome(name, ended.value, tokens)

    async def answer(self, client: httpx2.AsyncClient, ask: Ask) -> Turn:
        """Return the turn that is asked for; asks again while the server is busy, away or sends
        broken replies.

        Raises:
            ConnectionError: the server cannot be reached, try after try.
            ValueError: the server refuses the request, or does not answer it in any try.
        """
        body = json.dumps(self._request(ask)).encode()
        for tried in range(1, TRIES + 1):
            try:
                return await asyncio.wait_for(self._try(client, body), self.timeout)
            except asyncio.TimeoutError:
                problem = _TryAgainError(f"no whole reply within {self.timeout:g} seconds")
            except _TryAgainError as error:
                problem = error
            if tried < TRIES:
                await asyncio.sleep(pause(tried, problem.after) + random.random() * PAUSE)
        kind = ConnectionError if problem.away else ValueError
        raise kind(f"{self.address} gave no answer in {TRIES} tries; the last: {problem}")

    def _request(self, ask: Ask) -> dict[str, Any]:
        seed = int(hashlib.sha256(f"{self.settings.seed}/{ask.key}".encode()).hexdigest()[:7], 16)
        return {
            "model": self.settings.model,
            # what a model thought of earlier questions is not told again; some servers refuse it
            "messages": [
                {name: value for name, value in turn.items() if name != "reasoning_content"}
                for turn in ask.chat
            ],
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_new_tokens,
            "seed": seed,
        }

    async def _try(self, client: httpx2.AsyncClient, body: bytes) -> Turn:
        """Send a request once."""
        url, headers = f"{self.address}/chat/completions", {"Content-Type": "application/json"}
        try:
            async with client.stream("POST", url, content=body, headers=headers) as response:
                status, after = response.status_code, response.headers.get("Retry-After", "")
                reply = await _read(response)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _TryAgainError(f"no connection ({_said(error)})", away=True) from None
        except Exception as error:  # a reply that is not HTTP makes the client raise many kinds
            raise _TryAgainError(f"a broken reply ({_said(error)})") from None
        if status in BUSY or status >= 500:
            raise _TryAgainError(f"status {status}: {_start(reply)}", after)
        if not 200 <= status < 300:
            raise ValueError(f"{self.address} refuses it with status {status}: {_start(reply)}")
        if len(reply) > LARGEST_REPLY:
            raise _TryAgainError(f"a reply of more than {LARGEST_REPLY >> 20} MB")
        try:
            return parse_json(reply, Reply, "not a chat reply", "the reply").turn()
        except ValueError as error:
            raise _TryAgainError(f"{error}; it begins with {_start(reply)!r}") from None


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that looks up names in daemon threads. asyncio's own threads hold up the end of
    the program.
    """

    async def getaddrinfo(self, *where: Any, **how: Any) -> Any:
        """Return what `socket.getaddrinfo` does."""
        addresses: Future[Any] = Future()
        # so that a result which comes too late is no error
        addresses.set_running_or_notify_cancel()

        def look_up() -> None:
            try:
                addresses.set_result(socket.getaddrinfo(*where, **how))
            except Exception as error:
                addresses.set_exception(error)

        threading.Thread(target=look_up, name=THREAD, daemon=True).start()
        return await asyncio.wrap_future(addresses, loop=self)


class _Background:
    """A coroutine that runs in a daemon thread: nobody has to wait for it, not even the end of the
    program.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None]):
        self.loop = _Loop()
        self.task = self.loop.create_task(coroutine)
        self.thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self.loop.run_until_complete(self.task)
        self.loop.close()

    def stop(self) -> None:
        """Cancel the coroutine, and wait a moment for its connections to close."""
        with suppress(RuntimeError):  # the loop has closed already
            self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join(0.5)


def pause(tried: int, after: str) -> float:
    """Return the seconds before the next try: what `Retry-After` says, a number or a date, within
    bounds.
    """
    seconds = math.nan
    try:
        seconds = float(after)
    except ValueError:
        with suppress(ValueError, TypeError, OverflowError):
            seconds = (parsedate_to_datetime(after) - datetime.now(timezone.utc)).total_seconds()
    if math.isnan(seconds):
        seconds = PAUSE * 2.0 ** (tried - 1)
    return min(max(seconds, 0.0), LONGEST_PAUSE)


async def _read(response: httpx2.Response) -> bytes:
    """Return the body, or where it is too large, its beginning."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > LARGEST_REPLY:
            break
    return bytes(body)


def _checked(address: str) -> str:
    """Return a server's address without a slash at its end."""
    try:
        url = httpx2.URL(address)
    except httpx2.InvalidURL as error:
        raise ValueError(f"--server {address!r} is no address: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            f"a server's address begins with http:// or https:// and a host, got {address!r}"
        )
    return address.rstrip("/")


def _start(reply: bytes) -> str:
    return reply[:300].decode(errors="replace")


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
