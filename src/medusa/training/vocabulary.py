"""A draft vocabulary: the heads' cross-entropy over the tokens that occur in the data alone.

The softmax then leaves out all other tokens: they get no gradient, and a head never learns that
    they are improbable.
With a vocabulary of V tokens of which R occur, the heads' products cost R / V of what they cost
over all of it. Shapes: M positions, K heads, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.chats import IGNORED, Example
from .losses import ChunkLoss, cross_entropy_sum


def occurring(examples: Iterable[Example]) -> Tensor:
    """Return the tokens that are learnt in the examples, in ascending order [R]."""
    tokens = {label for example in examples for label in example.labels[1:]} - {IGNORED}
    return torch.tensor(sorted(tokens), dtype=torch.long)


def places(targets: Tensor, tokens: Tensor) -> Tensor:
    """Return each target's place among `tokens`; `IGNORED` stays.

    Raises:
        ValueError: a target is not among them.
    """
    found = torch.searchsorted(tokens, targets.contiguous()).clamp_max(len(tokens) - 1)
    there = targets != IGNORED
    if not torch.equal(tokens[found][there], targets[there]):
        raise ValueError(
            "head_vocabulary: a target is not among the tokens that the data were said to hold"
        )
    return found.masked_fill(~there, IGNORED)


def entropy_over(tokens: Tensor, bias: Tensor | None, rule: ChunkLoss) -> ChunkLoss:
    """Return the summed cross-entropy of states [M, H] with places [M] by rows [R, H], as `chunked`
    takes it.

    Args:
        bias: of the lm_head [V].
        rule: what the model does to its logits.
    """
    some = None if bias is None else bias.index_select(0, tokens)

    def entropy(states: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        logits = F.linear(states.to(rows.dtype), rows)
        return cross_entropy_sum(rule(logits if some is None else logits + some), targets)

    return entropy
