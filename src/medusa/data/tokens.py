"""Tokenisation of long texts: only as much text as the wanted number of tokens needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

CHARS_PER_TOKEN = 4
"""First estimate of a token's length; where tokens are longer, the piece of text is doubled."""
UNSTABLE_TOKENS = 4
"""Margin before a cut, in longest tokens: cutting a text may change the tokens in this margin."""


@dataclass(frozen=True)
class Tokenised:
    """The first tokens of a text.

    Attributes:
        ids: token ids, without the special tokens that the tokenizer adds around a text.
        offsets: (begin, end) of each token in characters, end excluded; empty for slow tokenizers.
        complete: True if `ids` covers the whole text.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    complete: bool


class PrefixTokenizer:
    """A tokenizer that returns only the first tokens of a text.

    Args:
        tokenizer: tokenizer of the model.
        max_tokens: number of tokens wanted of each text; None for all. Time and memory then grow
            with this number, not with the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None):
        self.tokenizer, self.max_tokens = tokenizer, max_tokens

    def tokenise(self, text: str) -> Tokenised:
        """Return the first tokens of a text, equal to those of the whole text."""
        if self.max_tokens is None:
            return self._tokenise_whole(text, len(text) + 1)
        size = CHARS_PER_TOKEN * self.max_tokens + self._margin
        while size < len(text):
            piece = self._tokenise_whole(text[:size], self.max_tokens)
            # The end of the piece is not the end of the text, so its last tokens may be others.
            stable = len(piece.ids) == self.max_tokens
            if stable and piece.offsets[-1][1] <= size - self._margin:
                return Tokenised(piece.ids, piece.offsets, False)
            size *= 2
        return self._tokenise_whole(text, self.max_tokens)

    def add_prefix(self, ids: Sequence[int]) -> list[int]:
        """Return ids after the tokenizer's own leading tokens (BOS), which are added once only."""
        before, _ = self._added
        return [*ids] if [*ids[: len(before)]] == before else [*before, *ids]

    def add_suffix(self, ids: Sequence[int]) -> list[int]:
        """Return ids before the tokenizer's own trailing tokens, which are added once only."""
        _, after = self._added
        return [*ids] if not after or [*ids[-len(after) :]] == after else [*ids, *after]

    def add_eos(self, ids: Sequence[int]) -> list[int]:
        """Return ids followed by the end-of-sequence token, which is added once only."""
        end = self.tokenizer.eos_token_id
        return [*ids] if end is None or (ids and ids[-1] == end) else [*ids, end]

    def _tokenise_whole(self, text: str, max_tokens: int) -> Tokenised:
        """Tokenise all of `text` and return at most `max_tokens` tokens."""
        has_offsets = self.tokenizer.is_fast
        encoding = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=has_offsets, verbose=False
        )
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"] if has_offsets else []
        return Tokenised(ids[:max_tokens], offsets[:max_tokens], len(ids) <= max_tokens)

    @cached_property
    def _margin(self) -> int:
        """Characters before a cut whose tokens may change because of the cut."""
        return UNSTABLE_TOKENS * max(map(len, self.tokenizer.get_vocab()), default=1)

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer adds before and after a text."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        place = next((n for n in range(len(full)) if full[n : n + len(plain)] == plain), None)
        if place is None:  # special tokens change how the text itself is tokenised
            return [], []
        return full[:place], full[place + len(plain) :]
