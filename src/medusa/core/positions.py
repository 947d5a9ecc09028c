"""Limits of a text's length: the end of a model's positions, and changes of its rotary factors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Positions:
    """The limits that a base model's positions set to a text.

    A text may have one token more than there are positions, because its last token is never run.

    Attributes:
        trained: positions the model was trained for (`max_position_embeddings`); None if the
            configuration does not say.
        table: positions that have a learnt or precomputed embedding; None if any position can be
            computed.
        change: positions after which rotary frequencies change, so that keys in the cache no longer
            fit; None if they never change.
        settles: True if the frequencies change only once (longrope), False if they change with
            every further token (dynamic NTK).
    """

    trained: int | None = None
    table: int | None = None
    change: int | None = None
    settles: bool = True

    @classmethod
    def of(cls, base: PreTrainedModel) -> Positions:
        """Read configuration and modules of a base model."""
        config = base.config.get_text_config()
        trained = getattr(config, "max_position_embeddings", None)
        ropes = list(_ropes(config))
        changes = [_change(rope, config) for rope in ropes if _changes(rope)]
        return cls(
            trained,
            trained if not ropes and trained is not None and _has_table(base, trained) else None,
            min(changes, default=None),
            not any("dynamic" in rope["rope_type"] for rope in ropes),
        )

    def longest(self, prompt: int) -> int | None:
        """Return the maximum length of a text with a prompt of this length; None for no limit."""
        limits = [self.trained, self.table, self.change if self.changes_after(prompt) else None]
        known = [limit for limit in limits if limit is not None]
        return min(known) + 1 if known else None

    def changes_after(self, prompt: int) -> bool:
        """Return True if frequencies would change while a text grows from `prompt` tokens."""
        return self.change is not None and (prompt <= self.change or not self.settles)

    def has_long_factors(self, prompt: int) -> bool:
        """Return True if a text with a prompt of this length has the frequencies of long texts.

        One forward uses the same frequencies for all its rows, so they must agree.
        """
        return self.change is not None and prompt > self.change

    def check(self, prompt: int, longest: int) -> None:
        """Check the length of a text of `prompt` tokens which may grow to `longest`.

        Raises:
            ValueError: the text may need more positions than the model has, or outgrow the rotary
                frequencies that its cached keys were made with.
        """
        if self.table is not None and prompt > self.table:
            raise ValueError(
                f"a prompt has {prompt} tokens and the model has {self.table} positions: shorten it"
            )
        if self.table is not None and longest > self.table + 1:
            raise ValueError(
                f"a text may grow to {longest} tokens and the model has {self.table} positions: "
                f"it may have {self.table + 1} tokens at most, as the last one is never run"
            )
        if self.change is not None and self.changes_after(prompt) and longest > self.change + 1:
            longest_answer = self.change + 1 - prompt
            remedy = f"pass max_new_tokens <= {longest_answer}, or " if longest_answer > 0 else ""
            raise ValueError(
                f"a prompt of {prompt} tokens may grow to {longest}, past the {self.change} "
                f"positions after which this model's rotary frequencies change: {remedy}call "
                "model.base.generate"
            )


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the rope parameters of a text configuration; there may be a set for each layer kind."""
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [each for each in found.values() if isinstance(each, dict) and "rope_type" in each]
    yield from kinds or ([found] if "rope_type" in found else [])


def _changes(rope: dict[str, Any]) -> bool:
    """Return True if frequencies depend on the largest position (`dynamic_rope_update`)."""
    return rope["rope_type"] == "longrope" or "dynamic" in rope["rope_type"]


def _change(rope: dict[str, Any], config: Any) -> int:
    original = rope.get("original_max_position_embeddings")
    if rope["rope_type"] == "longrope" and original is None:
        original = getattr(config, "original_max_position_embeddings", None)
    return int(
        config.max_position_embeddings
        if "dynamic" in rope["rope_type"] or original is None
        else original
    )


def _has_table(base: PreTrainedModel, positions: int) -> bool:
    """Return True if the model has a table of `positions` rows, or of one or two more."""
    rows = range(positions, positions + 3)
    words = set(base.get_input_embeddings().modules())  # several, with an adapter
    tables: Iterable[int] = (
        each.num_embeddings
        for each in base.modules()
        if isinstance(each, nn.Embedding) and each not in words
    )
    buffers = (
        len(each)
        for name, each in base.named_buffers()
        if name.endswith("embed_positions") and each.ndim == 2
    )
    return any(count in rows for count in (*tables, *buffers))
