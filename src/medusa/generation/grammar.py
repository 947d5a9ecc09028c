"""`Grammar`: a logits processor that keeps a text within a JSON schema, a pattern or a grammar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessor, PreTrainedTokenizerBase


class Grammar(LogitsProcessor):
    """A logits processor that allows only the tokens which continue a valid text.

    It runs on llguidance (`pip install 'medusa-decoding[structured]'`) and works with `generate` of
    this library and of transformers. The new tokens must match the grammar; the prompt is not part
    of the text. An object can be used for any number of calls, one after the other.

    Args:
        tokenizer: the model's tokenizer, a fast one.
        grammar: in llguidance's own format; `json_schema`, `regex` and `lark` make it.
        eos_token_id: tokens that end the text; by default the tokenizer's end token.

    Raises:
        ImportError: llguidance is not installed.
        ValueError: the grammar is invalid; the message says where.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        grammar: str,
        eos_token_id: int | Sequence[int] | None = None,
    ):
        ends = eos_token_id if isinstance(eos_token_id, int | None) else tuple(eos_token_id)
        wrapped = _wrapped(tokenizer, len(tokenizer), ends)
        self._start = _llguidance().LLMatcher(wrapped, grammar)
        if self._start.is_error():
            raise ValueError(f"the grammar is invalid: {self._start.get_error()}")
        self._matchers: list[Any] = []
        self._seen: Tensor | None = None

    @classmethod
    def json_schema(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        schema: str | Mapping[str, Any],
        eos_token_id: int | Sequence[int] | None = None,
        *,
        any_whitespace: bool = False,
    ) -> Grammar:
        """Return a grammar of the JSON texts that a schema describes.

        Args:
            any_whitespace: allow spaces and line breaks wherever JSON does. By default the texts
                are on one line, as `json.dumps` writes them.
        """
        layout = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
        grammar = _llguidance().LLMatcher.grammar_from_json_schema(
            schema if isinstance(schema, str) else dict(schema),
            defaults=None if any_whitespace else layout,
        )
        return cls(tokenizer, grammar, eos_token_id)

    @classmethod
    def regex(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        pattern: str,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> Grammar:
        """Return a grammar of the texts that a regular expression matches."""
        return cls(tokenizer, _llguidance().LLMatcher.grammar_from_regex(pattern), eos_token_id)

    @classmethod
    def lark(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        rules: str,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> Grammar:
        """Return a context-free grammar, given by rules in Lark's format."""
        return cls(tokenizer, _llguidance().LLMatcher.grammar_from_lark(rules), eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V] with minus infinity for tokens that do not continue the text.

        Args:
            input_ids: [B, S] the texts so far; the first call's are the prompts.
            scores: [B, V].

        Raises:
            ValueError: a text does not match the grammar.
        """
        if self._seen is None or not torch.equal(input_ids[:, :-1], self._seen):
            self._matchers = [self._start.deep_copy() for _ in input_ids]
        else:
            for matcher, token in zip(self._matchers, input_ids[:, -1].tolist(), strict=True):
                if not matcher.is_stopped() and not matcher.consume_token(token):
                    raise ValueError(f"the text left the grammar: {matcher.get_error()}")
        self._seen = input_ids
        allowed = torch.stack([_allowed(each) for each in self._matchers]).to(scores.device)
        missing = scores.shape[-1] - allowed.shape[-1]  # a model may have more tokens
        return scores.masked_fill(~F.pad(allowed, (0, missing)), -torch.inf)

    def fork(self) -> Grammar:
        """Return a grammar that stands at the same place of the text."""
        other = object.__new__(Grammar)
        other._start, other._seen = self._start, self._seen
        other._matchers = [each.deep_copy() for each in self._matchers]
        return other


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise ImportError(
            "grammars need llguidance: pip install 'medusa-decoding[structured]'"
        ) from error
    return llguidance


@lru_cache(maxsize=4)  # it takes a second for a large vocabulary
def _wrapped(
    tokenizer: PreTrainedTokenizerBase, size: int, ends: int | tuple[int, ...] | None
) -> Any:
    """Return llguidance's form of a tokenizer of this size."""
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, eos_token=list(ends) if isinstance(ends, tuple) else ends)


def _allowed(matcher: Any) -> Tensor:
    """Return [V] bool: the tokens that continue a matcher's text."""
    # one byte a token; a bytearray, because a tensor's memory must be writable
    return torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8).bool()
