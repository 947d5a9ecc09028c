"""Results of `generate`: sequences, and the logits of each position if they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from ..core.request import DecodingStats, Event
from .inputs import end_tokens


@dataclass
class MedusaGenerateOutput(ModelOutput):
    """Output of `generate(return_dict_in_generate=True)`.

    Attributes:
        sequences: [B, P + T] prompts and new tokens; rows that ended early are padded on the right.
        scores: with `output_scores=True`, T tensors [B, V]: the float32 logits after the logits
            processors that each token was chosen from. Where a row has ended, the padding token has
            logit 0 and all others minus infinity.
        logits: with `output_logits=True`, likewise before the processors.
        stats: tokens, steps and times of the run.
        finish_reasons: why each text ended.
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    stats: DecodingStats | None = None
    finish_reasons: list[str | None] | None = None


@dataclass
class Kept:
    """Logits of the tokens of a call, collected step by step.

    Attributes:
        pad: token that stands where a row has ended.
        scores: for each request its processed logits [n, V] of each step.
        logits: likewise without the processors.
    """

    pad: int
    scores: dict[int, list[Tensor]] = field(default_factory=dict)
    logits: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, events: Sequence[Event]) -> None:
        """Keep the logits that the events of a step hold: those that were asked for."""
        for event in events:
            if event.scores is not None:
                self.scores.setdefault(event.request, []).append(event.scores)
            if event.logits is not None:
                self.logits.setdefault(event.request, []).append(event.logits)

    def by_position(self, kept: dict[int, list[Tensor]]) -> tuple[Tensor, ...] | None:
        """Return `scores` or `logits` as [B, V] for each position; None if nothing was kept."""
        if not kept:
            return None
        # requests are numbered in the order of the rows
        rows = [torch.cat(kept[number]) for number in sorted(kept)]
        ended = rows[0].new_full((rows[0].shape[-1],), -torch.inf)
        ended[self.pad] = 0
        return tuple(
            torch.stack([row[place] if place < len(row) else ended for row in rows])
            for place in range(max(map(len, rows)))
        )


def logits_wanted(config: GenerationConfig) -> dict[str, Any]:
    """Return the fields of a request that say which logits a configuration asks for."""
    wanted = {"scores": config.output_scores, "logits": config.output_logits}
    return {name: bool(config.return_dict_in_generate and asked) for name, asked in wanted.items()}


def padding_token(config: GenerationConfig) -> int:
    """Return the token that fills rows which ended early, as in transformers."""
    if config.pad_token_id is not None:
        return config.pad_token_id
    return next(iter(end_tokens(config.eos_token_id)), 0)


def padded(inputs: Tensor, new: Sequence[list[int]], pad: int) -> Tensor:
    """Return [B, P + T]: the inputs [B, P] and each row's new tokens, padded on the right."""
    width = max(map(len, new))
    tokens = [row + [pad] * (width - len(row)) for row in new]
    return torch.cat([inputs, torch.tensor(tokens, device=inputs.device)], dim=1)
