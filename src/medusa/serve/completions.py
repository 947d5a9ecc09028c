"""`POST /v1/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import uuid4

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from ..text import encode_text
from .answers import Answerer, Answers, Token
from .chat import REASONS
from .errors import ApiError
from .events import event
from .fields import MOST_LOGPROBS, Sampling
from .steps import step_fields
from .usage import usage

Ids = Annotated[list[int], Field(min_length=1)]


class CompletionRequest(Sampling):
    """The body of `POST /v1/completions`: one prompt, as text or as token ids."""

    prompt: str | Ids | Annotated[list[str] | list[Ids], Field(min_length=1, max_length=1)]
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)


@dataclass
class Completion:
    """A completion request that is being answered."""

    request: CompletionRequest
    answers: Answers
    tokenizer: PreTrainedTokenizerBase
    id: str = field(default_factory=lambda: f"cmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _offsets: dict[int, int] = field(default_factory=dict)

    async def whole(self) -> dict[str, Any]:
        """Return the response when all answers have ended."""
        count = len(self.answers.answers)
        texts, reasons = [""] * count, ["stop"] * count
        tokens: list[list[Token]] = [[] for _ in range(count)]
        async for piece in self.answers:
            texts[piece.index] += piece.text
            tokens[piece.index] += piece.tokens
            if piece.finish_reason is not None:
                reasons[piece.index] = REASONS.get(piece.finish_reason, piece.finish_reason)
        choices = [
            self._choice(index, texts[index], reasons[index], tokens[index])
            for index in range(count)
        ]
        return {**self._head(), "choices": choices, "usage": usage(self.answers)}

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the chunks of the answers."""
        async for piece in self.answers:
            reason = piece.finish_reason and REASONS.get(piece.finish_reason, piece.finish_reason)
            choice = self._choice(piece.index, piece.text, reason, piece.tokens)
            chunk = {**self._head(), "choices": [choice]}
            if self.request.medusa.steps:
                steps = self.answers.answers[piece.index].steps
                chunk["medusa"] = step_fields(piece, steps, self.tokenizer)
            yield event(chunk)
        options = self.request.stream_options
        if options is not None and options.include_usage:
            yield event({**self._head(), "choices": [], "usage": usage(self.answers)})
        yield event("[DONE]")

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.request.model,
        }

    def _choice(
        self, index: int, text: str, reason: str | None, tokens: Sequence[Token]
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, tokens),
            "finish_reason": reason,
        }

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self.request.logprobs is None:
            return None
        decode = self.tokenizer.decode
        found: dict[str, list[Any]] = {
            name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        for token in tokens:
            assert token.logprobs is not None
            offset = self._offsets.get(index, 0)
            self._offsets[index] = offset + len(token.text)
            found["tokens"].append(decode([token.id]))
            found["token_logprobs"].append(token.logprobs.logprob)
            found["top_logprobs"].append({decode([each]): p for each, p in token.logprobs.top})
            found["text_offset"].append(offset)
        return found


def begin_completion(answerer: Answerer, request: CompletionRequest) -> Completion:
    """Begin to continue a prompt.

    Raises:
        ApiError: the prompt is empty.
        ValueError: see `Answerer.answer`.
    """
    prompt = request.prompt
    if isinstance(prompt, list) and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        ids = encode_text(answerer.tokenizer, prompt, raw=True)[0].tolist() if prompt else []
    else:
        ids = [int(each) for each in prompt]
    if not ids:
        raise ApiError(400, "the prompt is empty", "prompt")
    answers = answerer.answer(ids, request, logprobs=request.logprobs)
    return Completion(request, answers, answerer.tokenizer)
