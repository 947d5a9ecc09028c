"""Server-sent events: streams of an answer that end properly, whatever happens."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from .answers import AnswerError
from .errors import ApiError, unexpected
from .worker import WorkerError

logger = logging.getLogger(__name__)

KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Stream(EventSourceResponse):
    """A response that streams events.

    Args:
        events: the events.
        ended: called once the stream has ended, or its client has gone, even before its first
            event.
    """

    def __init__(self, events: AsyncIterator[bytes], ended: Callable[[], None]):
        super().__init__(events, headers=HEADERS)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


def event(data: Any, name: str | None = None) -> bytes:
    """Return an event with JSON data, and a name where the protocol gives events names."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n".encode()


def typed(data: dict[str, Any]) -> bytes:
    """Return an event whose name is the type of its data."""
    return event(data, data["type"])


def streamed(
    events: AsyncIterator[bytes],
    cancel: Callable[[], None],
    failed: Callable[[ApiError], bytes],
    keep_alive: float,
    ping: bytes = KEEP_ALIVE,
) -> Stream:
    """Return a response that streams events, and ends properly when an answer fails.

    Args:
        cancel: called when the stream has ended, or its client has gone.
        failed: returns the event that tells of an error, after which the stream ends.
        keep_alive: seconds without an event after which `ping` is sent.
        ping: an event, or a comment, that has no effect.
    """

    async def body() -> AsyncIterator[bytes]:
        try:
            async for each in kept_alive(events, keep_alive, ping):
                yield each
        except (AnswerError, WorkerError) as error:
            yield failed(of_failure(error))
        except Exception as error:  # a fault of the server: the stream ends properly even so
            logger.exception("a stream failed")
            yield failed(unexpected(error))

    return Stream(body(), cancel)


def of_failure(error: Exception) -> ApiError:
    """Return the API's error for an answer that failed."""
    return ApiError(503 if isinstance(error, WorkerError) else 500, str(error))


async def kept_alive(
    events: AsyncIterator[bytes], seconds: float, ping: bytes
) -> AsyncIterator[bytes]:
    """Yield events, and a ping whenever none came for some seconds."""
    iterator = aiter(events)
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(iterator))
            done, _ = await asyncio.wait({pending}, timeout=seconds)
            if not done:
                yield ping
                continue
            try:
                each = pending.result()
            except StopAsyncIteration:
                return
            finally:
                pending = None
            yield each
    finally:
        if pending is not None:
            pending.cancel()
