"""Token ids of texts of any length, of which no more is tokenised than is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

CHARACTERS = 4
"""Characters that a token is first taken to have; where tokens are longer, more text is tokenised.
"""
UNSURE = 4
"""Longest tokens before the place where a text was cut whose tokens may differ from those of the
whole text.
"""


@dataclass(frozen=True)
class Tokenised:
    """The first tokens of a text.

    Attributes:
        ids: token ids, without those that the tokenizer adds around a text.
        offsets: first and last character of each.
        whole: whether these are all tokens of the text.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    whole: bool


class Tokens:
    """Tokenises texts.

    Args:
        most: tokens of a text that are needed; None for all. Memory then grows with this number,
            not with the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, most: int | None = None):
        self.tokenizer, self.most = tokenizer, most

    def of(self, text: str) -> Tokenised:
        """Return the first tokens of a text, the same as if all of it were tokenised."""
        if self.most is None:
            return self._of(text, len(text) + 1)
        size = CHARACTERS * self.most + self._unsure
        while size < len(text):
            told = self._of(text[:size], self.most)
            if len(told.ids) == self.most and told.offsets[-1][1] <= size - self._unsure:
                return Tokenised(told.ids, told.offsets, False)
            size *= 2
        return self._of(text, self.most)

    def begun(self, ids: Sequence[int]) -> list[int]:
        """Return ids behind those that the tokenizer puts in front of a text, unless they stand
        there already.
        """
        before, _ = self._added
        return [*ids] if [*ids[: len(before)]] == before else [*before, *ids]

    def closed(self, ids: Sequence[int]) -> list[int]:
        """Return ids before those that the tokenizer puts behind a text, unless they stand there
        already.
        """
        _, after = self._added
        return [*ids] if not after or [*ids[-len(after) :]] == after else [*ids, *after]

    def ended(self, ids: Sequence[int]) -> list[int]:
        """Return ids with the end of sequence behind them, unless it stands there already."""
        end = self.tokenizer.eos_token_id
        return [*ids] if end is None or (ids and ids[-1] == end) else [*ids, end]

    def _of(self, text: str, most: int) -> Tokenised:
        exact = self.tokenizer.is_fast
        told = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=exact, verbose=False
        )
        ids, offsets = told["input_ids"], told["offset_mapping"] if exact else []
        return Tokenised(ids[:most], offsets[:most], len(ids) <= most)

    @cached_property
    def _unsure(self) -> int:
        return UNSURE * max(map(len, self.tokenizer.get_vocab()), default=1)

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer puts in front of a text and behind it."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        place = next((n for n in range(len(full)) if full[n : n + len(plain)] == plain), None)
        if place is None:  # the text itself is tokenised otherwise alone
            return [], []
        return full[:place], full[place + len(plain) :]
