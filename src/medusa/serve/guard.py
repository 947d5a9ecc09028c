"""Middleware: request ids, the API key, and the size of bodies."""

from __future__ import annotations

import hmac
import logging
import re
import time
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, response, unexpected
from .settings import ServerSettings

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/", "/health", "/page")
"""Paths that need no API key: the page asks for the key itself."""
VALID_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def request_id(headers: Headers) -> str:
    """Return the id that a client gave its request, or a new one."""
    given = headers.get("x-request-id", "")
    return given if VALID_ID.fullmatch(given) else uuid4().hex


def log_request(scope: Scope, number: str, status: int, seconds: float) -> None:
    """Write a line about a request that has ended; status 0 stands for a response never begun."""
    fields = {"id": number, "method": scope["method"], "path": scope["path"], "status": status}
    logger.log(
        logging.DEBUG if scope["path"] in ("/health", "/metrics") else logging.INFO,
        "request",
        extra={"fields": {**fields, "seconds": round(seconds, 4)}},
    )


class Guard:
    """Lets in requests that have the API key and are not too large, and logs each of them.

    Prompts and answers are not logged.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings):
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, begin = Headers(scope=scope), time.perf_counter()
        number, status = request_id(headers), 0
        scope.setdefault("state", {})["request_id"] = number

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = number
            await send(message)

        try:
            self._check(scope, headers)
            await self.app(scope, self._bounded(receive), marked)
        except ApiError as error:
            await response(error, scope["path"])(scope, receive, marked)
        except Exception as error:
            logger.exception("a request failed", extra={"fields": {"id": number}})
            if not status:
                await response(unexpected(error), scope["path"])(scope, receive, marked)
        finally:
            log_request(scope, number, status, time.perf_counter() - begin)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Refuse a request without the API key, or with a body that says it is too large."""
        key, path = self.settings.api_key, scope["path"]
        if key is not None and not (path in OPEN_PATHS or path.startswith("/page/")):
            given = headers.get("x-api-key") or headers.get("authorization", "")[len("Bearer ") :]
            if not hmac.compare_digest(given.encode(), key.encode()):
                raise ApiError(
                    401, "the API key is missing or wrong: send it as Authorization: Bearer KEY"
                )
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.settings.max_body:
            raise self._too_large()

    def _bounded(self, receive: Receive) -> Receive:
        """Return a `receive` that refuses a body which turns out too large."""
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.settings.max_body:
                raise HTTPException(413, self._too_large().message)
            return message

        return bounded

    def _too_large(self) -> ApiError:
        most = self.settings.max_body
        return ApiError(413, f"the body has more than {most} bytes, which is this server's limit")
