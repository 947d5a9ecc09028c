"""Errors in the shapes of OpenAI's and Anthropic's protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""OpenAI's types of errors by status; other statuses below 500 are invalid requests."""
ANTHROPIC_KINDS = {
    **KINDS,
    403: "permission_error",
    413: "request_too_large",
    503: "overloaded_error",
    529: "overloaded_error",
}
ANTHROPIC_PATH = "/v1/messages"


class ApiError(Exception):
    """A request that cannot be served.

    Attributes:
        status: HTTP status.
        message: what is wrong, and how to put it right.
        param: the field of the request that is wrong.
        code: short name of the error for programs.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code = status, code
        self.message = printable(message)
        self.param = None if param is None else printable(param)
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        other = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = KINDS.get(self.status, other)
        fields = {"message": self.message, "type": kind, "param": self.param}
        return {"error": {**fields, "code": self.code}}

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """The error as Anthropic's clients read it."""
        other = "api_error" if self.status >= 500 else "invalid_request_error"
        kind = ANTHROPIC_KINDS.get(self.status, other)
        return {"type": "error", "error": {"type": kind, "message": self.message}}


def printable(text: str) -> str:
    """Return text that UTF-8 can hold: half characters, which JSON may contain, are escaped."""
    return text.encode(errors="backslashreplace").decode()


def of_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return the error that names the first wrong field of a body."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    param, code = ".".join(place) or None, None
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message, code = f"{param} is not supported by this server: leave it out", "unknown_field"
    elif first["type"] == "json_invalid":
        message, param = f"the body is not valid JSON: {first.get('ctx', {}).get('error')}", None
    elif param is not None:
        message = f"{param}: {message[:1].lower()}{message[1:]}"
    return ApiError(400, message, param, code)


def response(error: ApiError, path: str) -> JSONResponse:
    """Return the response for an error, in the shape of the protocol that a path belongs to."""
    if path.startswith(ANTHROPIC_PATH):
        # a server that cannot answer now has a status of its own in this protocol
        status = 529 if error.status == 503 else error.status
        return JSONResponse(error.anthropic_body, status, headers=error.headers)
    return JSONResponse(error.body, error.status, headers=error.headers)


async def on_api_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with the error."""
    assert isinstance(error, ApiError)
    return response(error, request.url.path)


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer a body that does not have the fields of its endpoint."""
    assert isinstance(error, (RequestValidationError, ValidationError))
    return response(of_validation(error.errors()), request.url.path)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an unknown path or method, or a body that cannot be read."""
    assert isinstance(error, HTTPException)
    message, code = str(error.detail), None
    if error.status_code in (404, 405):
        message, code = f"there is no {request.method} {request.url.path} here", "unknown_url"
    found = ApiError(error.status_code, message, None, code, error.headers)
    return response(found, request.url.path)


def unexpected(error: Exception) -> ApiError:
    """Return the API's error for a fault of the server."""
    return ApiError(500, f"unexpected {type(error).__name__}; the server's log has more")
