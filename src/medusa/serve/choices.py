"""`Choices`: what OpenAI's chats and completions have in common."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import uuid4

from transformers import PreTrainedTokenizerBase

from .errors import ApiError
from .events import event
from .fields import Sampling
from .reading import Part, Reading
from .reply import Reply
from .steps import step_fields
from .usage import usage

Choice = dict[str, Any]
LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have; OpenAI's server writes the same number."""


def finite(logprob: float) -> float:
    """Return a log-probability as JSON can hold it."""
    return max(logprob, LEAST_LOGPROB)


@dataclass
class Choices(Reply):
    """Numbered answers to a request, in a response or in chunks.

    Attributes:
        prefix: begin of its id.
        kind: name of the response's type.
        chunk_kind: name of the chunks' type.
    """

    request: Sampling
    reading: Reading
    tokenizer: PreTrainedTokenizerBase
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(init=False)
    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid4().hex}"

    @abstractmethod
    def whole_choice(self, part: Part) -> Choice:
        """Return the choice of a whole answer."""

    @abstractmethod
    def choices(self, part: Part) -> list[Choice]:
        """Return the choices of the chunks for a part of an answer; the first is of its tokens."""

    def first_choices(self) -> list[Choice]:
        """Return the choices of the chunks before all others."""
        return []

    async def whole(self) -> dict[str, Any]:
        """Return the response when all answers have ended."""
        choices = [self.whole_choice(part) for part in await self.reading.whole()]
        return {**self._head(self.kind), "choices": choices, "usage": usage(self.answers)}

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the chunks of the answers."""
        for choice in self.first_choices():
            yield event(self._chunk(choice))
        async for part in self.reading:
            for place, choice in enumerate(self.choices(part)):
                chunk = self._chunk(choice)
                if self.request.medusa.steps and part.piece is not None and not place:
                    steps = self.answers.answers[part.index].steps
                    chunk["medusa"] = step_fields(part.piece, steps, self.tokenizer)
                yield event(chunk)
        options = self.request.stream_options
        if options is not None and options.include_usage:
            last = {**self._head(self.chunk_kind), "choices": []}
            yield event({**last, "usage": usage(self.answers)})
        yield event("[DONE]")

    def failed(self, error: ApiError) -> bytes:
        """Return the end of a stream that failed."""
        return event(error.body) + event("[DONE]")

    def _chunk(self, choice: Choice) -> dict[str, Any]:
        return {**self._head(self.chunk_kind), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}
