"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from ..text import encode_text
from .answers import Answerer, Token
from .choices import Choice, Choices, finite
from .errors import ApiError
from .fields import MOST_LOGPROBS, Sampling
from .reading import Part, Reading

Ids = Annotated[list[int], Field(min_length=1)]


class CompletionRequest(Sampling):
    """The body of `POST /v1/completions`: one prompt, as text or as token ids."""

    prompt: str | Ids | Annotated[list[str] | list[Ids], Field(min_length=1, max_length=1)]
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)


@dataclass
class Completion(Choices):
    """A completion request that is being answered."""

    request: CompletionRequest
    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"
    _offsets: dict[int, int] = field(default_factory=dict)

    def whole_choice(self, part: Part) -> Choice:
        """Return the choice of a whole answer, or of a part."""
        return {
            "index": part.index,
            "text": part.text,
            "logprobs": self._logprobs(part.index, part.tokens),
            "finish_reason": part.reason,
        }

    def choices(self, part: Part) -> list[Choice]:
        """Return the choice of the chunk for a part."""
        return [self.whole_choice(part)]

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
            found["token_logprobs"].append(finite(token.logprobs.logprob))
            found["top_logprobs"].append(
                {decode([each]): finite(value) for each, value in token.logprobs.top}
            )
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
    return Completion(request, Reading(answers), answerer.tokenizer)
