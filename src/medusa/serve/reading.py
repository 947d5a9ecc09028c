"""Answers as they are read: texts and tool calls, in parts or whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from .answers import Answers, Piece, Token
from .chat_fields import ToolCall
from .tools import ToolFormat, ToolReader

Content = list[str | ToolCall]
"""Texts and tool calls, in the order in which they were written."""


@dataclass(frozen=True)
class Part:
    """A part of an answer, or all of it.

    Attributes:
        index: number of the answer.
        content: texts and complete tool calls.
        tokens: tokens of the answer since the part before.
        reason: why the answer ends with this part, in the words of OpenAI's chats; None where it
            goes on.
        stop_string: the stop string that ended it.
        piece: the piece that was read; None for a whole answer.
    """

    index: int
    content: Content = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    reason: str | None = None
    stop_string: str | None = None
    piece: Piece | None = None

    @property
    def text(self) -> str:
        """All texts."""
        return "".join(each for each in self.content if isinstance(each, str))

    @property
    def calls(self) -> list[ToolCall]:
        """All tool calls."""
        return [each for each in self.content if not isinstance(each, str)]


class Reading:
    """Reads answers. Iterate over their parts, or take them `whole`.

    Args:
        form: how the model writes tool calls; None if it was given no tools.
        several: return all calls of an answer; otherwise only the first.
    """

    def __init__(self, answers: Answers, form: ToolFormat | None = None, several: bool = True):
        self.answers = answers
        self._readers = [ToolReader(form, several) for _ in answers.answers]
        self._calls = [0] * len(self._readers)

    async def __aiter__(self) -> AsyncIterator[Part]:
        """Yield parts up to the end of the last answer; see `Answers` for the errors."""
        async for piece in self.answers:
            yield self._part(piece)

    async def whole(self) -> list[Part]:
        """Return the answers when all have ended."""
        found = [Part(index) for index in range(len(self._readers))]
        async for part in self:
            before = found[part.index]
            content, tokens = before.content + part.content, before.tokens + part.tokens
            found[part.index] = replace(part, content=content, tokens=tokens, piece=None)
        return found

    def _part(self, piece: Piece) -> Part:
        index, ended = piece.index, piece.finish_reason is not None
        content = self._readers[index].push(piece.text, ended)
        part = Part(index, content, list(piece.tokens), piece=piece)
        self._calls[index] += len(part.calls)
        if not ended:
            return part
        stopped = piece.finish_reason == "stop_string"
        string = self.answers.answers[index].shown.found if stopped else None
        return replace(part, reason=self._reason(piece), stop_string=string)

    def _reason(self, piece: Piece) -> str:
        if piece.finish_reason == "length":  # calls may be missing
            return "length"
        return "tool_calls" if self._calls[piece.index] else "stop"
