"""Anthropic's `POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import uuid4

from .answers import Answerer
from .chat_fields import ToolCall
from .conversation import converse, prompt_ids
from .errors import ApiError
from .events import typed
from .messages_fields import CountRequest, MessagesRequest
from .reading import Part, Reading
from .reply import GrowingReply
from .usage import messages_usage

Fields = dict[str, Any]
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
"""Anthropic's names of the reasons why an answer ends."""


@dataclass
class MessagesReply(GrowingReply):
    """A message that is being written.

    Attributes:
        blocks: its blocks so far; the last one may grow if it is a text.
    """

    request: MessagesRequest
    reading: Reading
    blocks: list[Fields] = field(default_factory=list)
    id: str = field(default_factory=lambda: f"msg_{uuid4().hex}")
    stop: Fields = field(default_factory=lambda: {"stop_reason": None, "stop_sequence": None})
    ping: ClassVar[bytes] = typed({"type": "ping"})

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events of a stream."""
        yield typed({"type": "message_start", "message": self._response()})
        async for part in self.reading:
            for each in self._add(part):
                yield typed(each)
        usage = messages_usage(self.answers)
        yield typed({"type": "message_delta", "delta": self.stop, "usage": usage})
        yield typed({"type": "message_stop"})

    def failed(self, error: ApiError) -> bytes:
        """Return the end of a stream that failed."""
        return typed(error.anthropic_body)

    def _response(self) -> Fields:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.request.model,
            "content": self.blocks,
            **self.stop,
            "usage": messages_usage(self.answers),
        }

    def _add(self, part: Part) -> list[Fields]:
        """Add a part to the blocks; return the events that tell of it."""
        events: list[Fields] = []
        for each in part.content:
            events += self._add_text(each) if isinstance(each, str) else self._add_call(each)
        if part.reason is not None:
            events += self._end_of_text()
            self.stop = {"stop_reason": REASONS[part.reason], "stop_sequence": part.stop_string}
            if part.stop_string is not None and part.reason == "stop":
                self.stop["stop_reason"] = "stop_sequence"
        return events

    def _add_text(self, text: str) -> list[Fields]:
        if not text:
            return []
        events = []
        if not self._ends_in_text:
            self.blocks.append({"type": "text", "text": ""})
            events = [self._block_event("start", content_block={"type": "text", "text": ""})]
        self.blocks[-1]["text"] += text
        delta = {"type": "text_delta", "text": text}
        return [*events, self._block_event("delta", delta=delta)]

    def _add_call(self, call: ToolCall) -> list[Fields]:
        events, written = self._end_of_text(), call.function.arguments
        block = {"type": "tool_use", "id": call.id, "name": call.function.name}
        self.blocks.append({**block, "input": json.loads(written)})
        delta = {"type": "input_json_delta", "partial_json": written}
        return [
            *events,
            self._block_event("start", content_block={**block, "input": {}}),
            self._block_event("delta", delta=delta),
            self._block_event("stop"),
        ]

    @property
    def _ends_in_text(self) -> bool:
        return bool(self.blocks) and self.blocks[-1]["type"] == "text"

    def _end_of_text(self) -> list[Fields]:
        return [self._block_event("stop")] if self._ends_in_text else []

    def _block_event(self, kind: str, **content: Fields) -> Fields:
        return {"type": f"content_block_{kind}", "index": len(self.blocks) - 1, **content}


def begin_message(answerer: Answerer, request: MessagesRequest) -> MessagesReply:
    """Begin to write a message; see `converse`."""
    return MessagesReply(request, converse(answerer, request.chat, request.unfinished))


def count_tokens(answerer: Answerer, request: CountRequest) -> dict[str, int]:
    """Return the number of tokens of a conversation."""
    ids = prompt_ids(answerer.tokenizer, request.chat, request.unfinished)
    return {"input_tokens": len(ids)}
