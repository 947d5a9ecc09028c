"""`Reply`: an answer in the form of a protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, ClassVar

from .answers import Answers
from .errors import ApiError
from .events import KEEP_ALIVE
from .reading import Part, Reading


class Reply(ABC):
    """An answer in the form of a protocol.

    Attributes:
        reading: the answer as it comes.
        ping: sent in a stream that has nothing to say for long.
    """

    reading: Reading
    ping: ClassVar[bytes] = KEEP_ALIVE

    @property
    def answers(self) -> Answers:
        """The answers under way."""
        return self.reading.answers

    @abstractmethod
    async def whole(self) -> dict[str, Any]:
        """Return the response when the answer has ended."""

    @abstractmethod
    def events(self) -> AsyncIterator[bytes]:
        """Yield the events of a stream."""

    @abstractmethod
    def failed(self, error: ApiError) -> bytes:
        """Return the end of a stream that failed."""


class GrowingReply(Reply):
    """A reply whose response grows part by part; streams tell of each change."""

    async def whole(self) -> dict[str, Any]:
        """Return the response when the answer has ended."""
        async for part in self.reading:
            self._add(part)
        return self._response()

    @abstractmethod
    def _add(self, part: Part) -> list[dict[str, Any]]:
        """Add a part to the response; return the events that tell of it."""

    @abstractmethod
    def _response(self) -> dict[str, Any]:
        """Return the response so far."""
