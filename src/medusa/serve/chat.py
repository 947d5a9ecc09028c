"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .answers import Answerer, Token
from .chat_fields import ChatRequest, ToolCall
from .choices import Choice, Choices, finite
from .conversation import converse
from .reading import Part


@dataclass
class Chat(Choices):
    """A chat request that is being answered."""

    request: ChatRequest
    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"
    _calls: dict[int, int] = field(default_factory=dict)

    def whole_choice(self, part: Part) -> Choice:
        """Return the choice of a whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": part.text, "refusal": None}
        if part.calls:
            message["content"] = part.text or None
            message["tool_calls"] = [_written(each) for each in part.calls]
        logprobs = self._logprobs(part.tokens)
        return _choice(part.index, "message", message, part.reason, logprobs)

    def first_choices(self) -> list[Choice]:
        """Return a choice that begins each answer."""
        delta = {"role": "assistant", "content": ""}
        return [_choice(each, "delta", delta) for each in range(self.request.count)]

    def choices(self, part: Part) -> list[Choice]:
        """Return the choices of the chunks for a part: its text, its calls and its end."""
        index, made = part.index, []
        if part.text or part.tokens:
            delta = {"content": part.text} if part.text else {}
            logprobs = self._logprobs(part.tokens)
            made.append(_choice(index, "delta", delta, logprobs=logprobs))
        for call in part.calls:
            place = self._calls.get(index, 0)
            self._calls[index] = place + 1
            written = {"index": place, **_written(call)}
            made.append(_choice(index, "delta", {"tool_calls": [written]}))
        if part.reason is not None:
            made.append(_choice(index, "delta", {}, part.reason))
        return made

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.request.logprobs:
            return None
        return {"content": [self._logprob(each) for each in tokens], "refusal": None}

    def _logprob(self, token: Token) -> dict[str, Any]:
        assert token.logprobs is not None
        top = [self._named(each, value) for each, value in token.logprobs.top]
        return {**self._named(token.id, token.logprobs.logprob), "top_logprobs": top}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token])
        return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}


def _written(call: ToolCall) -> dict[str, Any]:
    return call.model_dump(exclude={"index"})


def _choice(
    index: int,
    kind: str,
    content: dict[str, Any],
    reason: str | None = None,
    logprobs: dict[str, Any] | None = None,
) -> Choice:
    return {"index": index, kind: content, "logprobs": logprobs, "finish_reason": reason}


def begin_chat(answerer: Answerer, request: ChatRequest) -> Chat:
    """Begin to answer a chat; see `converse`."""
    return Chat(request, converse(answerer, request), answerer.tokenizer)
