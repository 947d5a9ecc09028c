"""Responses as the server's OpenAPI description tells of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ErrorFields(BaseModel):
    """An error of OpenAI's protocols."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of an error in OpenAI's protocols."""

    error: ErrorFields


class AnthropicErrorFields(BaseModel):
    """An error of Anthropic's protocol."""

    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """The body of an error in Anthropic's protocol."""

    type: Literal["error"]
    error: AnthropicErrorFields


Responses = dict[int | str, dict[str, Any]]
"""Descriptions of responses by their status."""


def _errors(model: type[BaseModel]) -> Responses:
    return {
        "4XX": {"model": model, "description": "The request cannot be served as it is"},
        "5XX": {"model": model, "description": "The server cannot answer"},
    }


ERRORS = _errors(ErrorBody)
ANTHROPIC_ERRORS = _errors(AnthropicErrorBody)
ANSWER: Responses = {
    200: {
        "description": "The answer, as server-sent events where `stream` is true",
        "content": {"text/event-stream": {}},
    }
}
HEALTH: Responses = {503: {"description": "The server takes no requests; `reason` says why"}}
