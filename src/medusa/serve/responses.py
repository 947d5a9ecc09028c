"""OpenAI's `POST /v1/responses`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from .answers import Answerer
from .chat_fields import ToolCall
from .conversation import converse
from .errors import ApiError
from .events import typed
from .reading import Part, Reading
from .reply import GrowingReply
from .responses_fields import ResponsesRequest
from .usage import responses_usage

Fields = dict[str, Any]


@dataclass
class ResponsesReply(GrowingReply):
    """A response that is being written.

    Attributes:
        items: its items so far; the last one may grow if it is a message.
        status: "in_progress", "completed", "incomplete" or "failed".
    """

    request: ResponsesRequest
    reading: Reading
    items: list[Fields] = field(default_factory=list)
    status: str = "in_progress"
    id: str = field(default_factory=lambda: f"resp_{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _events: int = 0

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events of a stream."""
        for kind in ("response.created", "response.in_progress"):
            yield self._typed({"type": kind, "response": self._response()})
        async for part in self.reading:
            for each in self._add(part):
                yield self._typed(each)
        yield self._typed({"type": f"response.{self.status}", "response": self._response()})

    def failed(self, error: ApiError) -> bytes:
        """Return the end of a stream that failed."""
        self.status = "failed"
        found = {"code": "server_error", "message": error.message}
        last = {**self._response(), "error": found}
        return self._typed({"type": "error", **found, "param": error.param}) + self._typed(
            {"type": "response.failed", "response": last}
        )

    def _typed(self, data: Fields) -> bytes:
        self._events += 1
        return typed({**data, "sequence_number": self._events - 1})

    def _add(self, part: Part) -> list[Fields]:
        """Add a part to the items; return the events that tell of it."""
        events: list[Fields] = []
        for each in part.content:
            events += self._add_text(each) if isinstance(each, str) else self._add_call(each)
        if part.reason is not None:
            self.status = "incomplete" if part.reason == "length" else "completed"
            if not self.items:
                events += self._begin_message()
            events += self._end_of_message(self.status)
        return events

    def _add_text(self, text: str) -> list[Fields]:
        if not text:
            return []
        events = [] if self._ends_in_message else self._begin_message()
        self.items[-1]["content"][0]["text"] += text
        return [*events, self._text_event("output_text.delta", delta=text, logprobs=[])]

    def _begin_message(self) -> list[Fields]:
        head = {"id": f"msg_{uuid4().hex}", "type": "message", "role": "assistant"}
        self.items.append({**head, "status": "in_progress", "content": [_text("")]})
        return [
            self._event("output_item.added", item={**self.items[-1], "content": []}),
            self._text_event("content_part.added", part=_text("")),
        ]

    def _end_of_message(self, status: str = "completed") -> list[Fields]:
        if not self._ends_in_message:
            return []
        item = self.items[-1]
        item["status"], part = status, item["content"][0]
        return [
            self._text_event("output_text.done", text=part["text"], logprobs=[]),
            self._text_event("content_part.done", part=part),
            self._event("output_item.done", item=item),
        ]

    def _add_call(self, call: ToolCall) -> list[Fields]:
        events, written = self._end_of_message(), call.function.arguments
        item = {
            "id": f"fc_{uuid4().hex}",
            "type": "function_call",
            "call_id": call.id,
            "name": call.function.name,
            "arguments": written,
            "status": "completed",
        }
        self.items.append(item)
        begun = {**item, "arguments": "", "status": "in_progress"}
        done = {"item_id": item["id"], "arguments": written, "name": call.function.name}
        return [
            *events,
            self._event("output_item.added", item=begun),
            self._event("function_call_arguments.delta", item_id=item["id"], delta=written),
            self._event("function_call_arguments.done", **done),
            self._event("output_item.done", item=item),
        ]

    @property
    def _ends_in_message(self) -> bool:
        return bool(self.items) and self.items[-1]["type"] == "message"

    def _event(self, kind: str, **content: Any) -> Fields:
        return {"type": f"response.{kind}", "output_index": len(self.items) - 1, **content}

    def _text_event(self, kind: str, **content: Any) -> Fields:
        return self._event(kind, item_id=self.items[-1]["id"], content_index=0, **content)

    def _response(self) -> Fields:
        request, ended = self.request, self.status in ("completed", "incomplete")
        given = request.model_dump(mode="json", by_alias=True, include=REPEATED)
        reason = {"reason": "max_output_tokens"} if self.status == "incomplete" else None
        return {
            **given,
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": self.status,
            "error": None,
            "incomplete_details": reason,
            "output": self.items if ended else [],
            "tools": given["tools"] or [],
            "tool_choice": given["tool_choice"] or "auto",
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "store": False,
            "usage": responses_usage(self.answers) if ended else None,
        }


REPEATED = set(
    "model instructions max_output_tokens metadata previous_response_id temperature text "
    "tool_choice tools top_p truncation user".split()
)
"""Fields of the request that its response repeats."""


def _text(text: str) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def begin_response(answerer: Answerer, request: ResponsesRequest) -> ResponsesReply:
    """Begin to write a response; see `converse`."""
    return ResponsesReply(request, converse(answerer, request.chat))
