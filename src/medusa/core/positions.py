"""Limits of a text's length: the end of a model's positions, and a change of its rotary
frequencies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Positions:
    """The limits that a base model's positions set to a text.

    A text may have one token more than there are positions, because its last token is never run.

    Attributes:
        trained: positions the model was trained for (`max_position_embeddings`); None where it does
            not say.
        table: positions that have a learnt or precomputed embedding; None where any position can be
            computed.
        change: positions after which rotary frequencies change, so that keys in the cache no longer
            fit.
        settles: whether the frequencies change only once (longrope), not with every further token
            (dynamic NTK).
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
        """Return how many tokens a text that begins with `prompt` tokens may have; None where
        nothing limits it.
        """
        limits = [self.trained, self.table, self.change if self.changes_after(prompt) else None]
        known = [limit for limit in limits if limit is not None]
        return min(known) + 1 if known else None

    def changes_after(self, prompt: int) -> bool:
        """Return whether frequencies would change while a text grows from `prompt` tokens."""
        return self.change is not None and (prompt <= self.change or not self.settles)

    def check(self, prompts: Sequence[int], longest: Sequence[int]) -> None:
        """Check the lengths of a batch: `prompts` tokens each, which may grow to `longest`.

        Raises:
            ValueError: a prompt has more tokens than the model has positions, or a text may outgrow
                the rotary frequencies that its cached keys were made with, or rows of the batch
                would need different frequencies.
        """
        for prompt, most in zip(prompts, longest, strict=True):
            if self.table is not None and prompt > self.table:
                raise ValueError(
                    f"a prompt has {prompt} tokens and the model has {self.table} positions: "
                    "shorten it"
                )
            if self.change is not None and self.changes_after(prompt) and most > self.change + 1:
                room = self.change + 1 - prompt
                remedy = f"pass max_new_tokens <= {room}, or " if room > 0 else ""
                raise ValueError(
                    f"a prompt of {prompt} tokens may grow to {most}, past the {self.change} "
                    "positions after which "
                    f"this model's rotary frequencies change: {remedy}call model.base.generate"
                )
        if self.change is not None and len({prompt <= self.change for prompt in prompts}) > 1:
            raise ValueError(
                f"prompts of up to {self.change} tokens and longer ones need different rotary "
                "frequencies with this "
                "model: decode them in batches of their own"
            )


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """The rope parameters of a text configuration, which may have one set for each kind of
    layer.
    """
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [each for each in found.values() if isinstance(each, dict) and "rope_type" in each]
    yield from kinds or ([found] if "rope_type" in found else [])


def _changes(rope: dict[str, Any]) -> bool:
    """Return whether frequencies depend on the largest position of a forward (transformers'
    `dynamic_rope_update`).
    """
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
    """Return whether the model has a table of this many positions, with up to two rows of padding
    before them.
    """
    rows = range(positions, positions + 3)
    words = base.get_input_embeddings()
    tables: Iterable[int] = (
        each.num_embeddings
        for each in base.modules()
        if isinstance(each, nn.Embedding) and each is not words
    )
    buffers = (
        len(each)
        for name, each in base.named_buffers()
        if name.endswith("embed_positions") and each.ndim == 2
    )
    return any(count in rows for count in (*tables, *buffers))
