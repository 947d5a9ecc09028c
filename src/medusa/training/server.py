"""Answers from an OpenAI-compatible server, several conversations at a time.

Requests run in an event loop of a daemon thread, so that an interrupt (Ctrl-C) of the thread that
waits for outcomes ends the program at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
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
from .chat_server import ChatServer, Message, beginning, chat_request, message_of
from .conversations import Ask, Conversation, GenerationSettings, Outcome, Turn

TRIES = 6
"""Maximum number of times that a request is sent."""
PAUSE = 1.0
"""Pause before the second try, in seconds; it doubles with each try, and a random part is added."""
LONGEST_PAUSE = 60.0
"""Longest pause between two tries, in seconds, whatever the server's Retry-After says."""
LARGEST_REPLY = 16 << 20
"""Largest reply that is read, in bytes."""
BUSY_STATUSES = (408, 409, 425, 429)
"""HTTP statuses that ask for another try, besides 5xx."""
CUT_REASONS = ("length", "content_filter")
"""Finish reasons of an answer that the model itself did not end."""
THREAD = "medusa requests"
"""Name of the threads in which requests run."""


class Choice(BaseModel):
    """An answer in a reply."""

    message: Message
    finish_reason: str | None = None


class Reply(BaseModel):
    """A reply to /chat/completions; unknown fields are ignored."""

    choices: list[Choice] = Field(min_length=1)
    usage: Any = None

    def turn(self) -> Turn:
        """Return the first answer."""
        message = self.choices[0].message
        count = self.usage.get("completion_tokens") if isinstance(self.usage, dict) else None
        tokens = count if isinstance(count, int) else 0
        cut = self.choices[0].finish_reason in CUT_REASONS
        return Turn(message.text.strip(), tokens, cut, message.thought)


class _TryAgainError(Exception):
    """A failed request that may succeed at the next try.

    Args:
        why: what went wrong.
        after: the server's Retry-After header.
        unreachable: True if no connection was made.
    """

    def __init__(self, why: str, after: str = "", unreachable: bool = False):
        super().__init__(why)
        self.after, self.unreachable = after, unreachable


class ServerAnswerer:
    """An answerer that sends the turns of conversations to an OpenAI-compatible server.

    Args:
        address: address of the API with its version, such as http://localhost:8000/v1.
        settings: settings of the answers.
        key: API key, sent as a bearer token; by default the environment variable OPENAI_API_KEY.
        in_flight: number of conversations at a time.
        timeout: time limit for a whole reply, in seconds.

    Raises:
        ValueError: the address, the key or the timeout is invalid, or the settings ask for
            self-talk, which a chat server cannot do.
    """

    def __init__(
        self,
        address: str,
        settings: GenerationSettings,
        key: str | None = None,
        in_flight: int = 8,
        timeout: float = 600,
    ):
        self.server, self.settings = ChatServer(address, key, timeout), settings
        if settings.self_talk:
            self.check_own_questions()
        self.in_flight = in_flight

    def check_own_questions(self) -> None:
        """Raise ValueError: a chat server writes only the assistant's turns."""
        raise ValueError(
            "--self-prompts and --self-talk let the model write the user's turns, which a chat "
            "server does not do"
        )

    def drive(
        self, conversations: Sequence[tuple[str, Conversation]]
    ) -> Generator[Outcome, None, None]:
        """Run named conversations; yield each outcome. A refused one does not stop the others.

        Raises:
            ConnectionError: the server cannot be reached.
        """
        outcomes: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
        work = _Background(self._run_all(conversations, outcomes.put))
        try:
            for _ in conversations:
                outcome = outcomes.get()
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
        finally:
            work.stop()

    async def _run_all(
        self,
        conversations: Sequence[tuple[str, Conversation]],
        report: Callable[[Outcome | Exception], None],
    ) -> None:
        """Run all conversations, `in_flight` at a time; `report` each outcome, or a fatal error."""
        waiting = iter(conversations)  # shared: each worker takes the next conversation from it

        async def work(client: httpx2.AsyncClient) -> None:
            for name, talk in waiting:
                report(await self._run(client, name, talk))

        try:
            # `answer` limits the time of a whole reply
            async with httpx2.AsyncClient(**self.server.client_options()) as client:
                workers = [asyncio.create_task(work(client)) for _ in range(self.in_flight)]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)
        except Exception as error:
            report(error)

    async def _run(self, client: httpx2.AsyncClient, name: str, talk: Conversation) -> Outcome:
        """Run a conversation to its end, or to the first request that is refused."""
        ask, tokens = next(talk), 0
        while True:
            try:
                turn = await self.answer(client, ask)
            except ValueError as error:
                return Outcome(name, error, tokens)
            tokens += turn.tokens
            try:
                ask = talk.send(turn)
            except StopIteration as stop:
                return Outcome(name, stop.value, tokens)

    async def answer(self, client: httpx2.AsyncClient, ask: Ask) -> Turn:
        """Return the next turn of a conversation; try again if the server is busy or fails.

        Raises:
            ConnectionError: the server could not be reached in any try.
            ValueError: the server refuses the request, or gave no valid reply in any try.
        """
        body = json.dumps(self._request(ask)).encode()
        for tried in range(1, TRIES + 1):
            try:
                return await asyncio.wait_for(self._try(client, body), self.server.timeout)
            except asyncio.TimeoutError:
                problem = _TryAgainError(f"no whole reply within {self.server.timeout:g} seconds")
            except _TryAgainError as error:
                problem = error
            if tried < TRIES:
                await asyncio.sleep(pause(tried, problem.after) + random.random() * PAUSE)
        kind = ConnectionError if problem.unreachable else ValueError
        raise kind(f"{self.server.address} gave no answer in {TRIES} tries; the last: {problem}")

    def _request(self, ask: Ask) -> dict[str, Any]:
        # 7 hexadecimal digits, because some servers read the seed as a signed 32-bit integer.
        seed = int(hashlib.sha256(f"{self.settings.seed}/{ask.key}".encode()).hexdigest()[:7], 16)
        return chat_request(
            self.settings.model,
            ask.chat,
            max_tokens=self.settings.max_new_tokens,
            temperature=self.settings.temperature,
            seed=seed,
        )

    async def _try(self, client: httpx2.AsyncClient, body: bytes) -> Turn:
        """Send a request once and return the turn in the reply.

        Raises:
            _TryAgainError: the server is busy, unreachable, or its reply is invalid.
            ValueError: the server refuses the request.
        """
        url, headers = self.server.chat_url, {"Content-Type": "application/json"}
        try:
            async with client.stream("POST", url, content=body, headers=headers) as response:
                status, after = response.status_code, response.headers.get("Retry-After", "")
                reply = await _read_body(response)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _TryAgainError(f"no connection ({message_of(error)})", unreachable=True) from None
        except Exception as error:  # a reply that is not HTTP can raise any error in the client
            raise _TryAgainError(f"a broken reply ({message_of(error)})") from None
        if status in BUSY_STATUSES or status >= 500:
            raise _TryAgainError(f"status {status}: {beginning(reply)}", after)
        if not 200 <= status < 300:
            raise self.server.refusal(status, reply)
        if len(reply) > LARGEST_REPLY:
            raise _TryAgainError(f"a reply of more than {LARGEST_REPLY >> 20} MB")
        try:
            return parse_json(reply, Reply, "not a chat reply", "the reply").turn()
        except ValueError as error:
            raise _TryAgainError(f"{error}; it begins with {beginning(reply)!r}") from None


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that resolves host names in daemon threads.

    Python waits at its exit for asyncio's own threads, even while they wait for a name server.
    """

    async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
        """Return what `socket.getaddrinfo` returns."""
        addresses: Future[Any] = Future()
        # A running future cannot be cancelled: setting a result too late then raises no error.
        addresses.set_running_or_notify_cancel()

        def look_up() -> None:
            try:
                addresses.set_result(socket.getaddrinfo(*args, **options))
            except Exception as error:
                addresses.set_exception(error)

        threading.Thread(target=look_up, name=THREAD, daemon=True).start()
        return await asyncio.wrap_future(addresses, loop=self)


class _Background:
    """A coroutine in a daemon thread, which the program's exit does not wait for."""

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
        """Cancel the coroutine and give its connections half a second to close."""
        with suppress(RuntimeError):  # the loop is closed already
            self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join(0.5)


def pause(tried: int, after: str) -> float:
    """Return the pause before the next try in seconds, at most `LONGEST_PAUSE`.

    Args:
        tried: number of tries so far; without `after`, the pause doubles with each.
        after: the server's Retry-After header, a number of seconds or a date; may be empty.
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


async def _read_body(response: httpx2.Response) -> bytes:
    """Return the body of a response, or its beginning if it is larger than `LARGEST_REPLY`."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > LARGEST_REPLY:
            break
    return bytes(body)
