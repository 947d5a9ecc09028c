"""Restricted head vocabulary: the heads' cross-entropy over the tokens that occur in the data.

All other tokens are left out of the softmax. They get no gradient, so a head never learns that they
are improbable; decoding does not propose them (`MedusaHeads.token_map`). With R tokens of V, the
products with the heads' output layers cost R / V of what they cost over the whole vocabulary.

Shapes: M positions, K heads, H hidden size, V vocabulary size, R occurring tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.chats import IGNORED
from .losses import ChunkLoss, head_loss_sum


def occurring_tokens(targets: Iterable[Tensor | Sequence[int]]) -> Tensor:
    """Return the ids of all tokens that are targets, in ascending order [R].

    Args:
        targets: tensors or lists of token ids, with `IGNORED` where there is no target.
    """
    tokens: set[int] = set()
    for each in targets:
        tokens.update(each.unique().tolist() if isinstance(each, Tensor) else each)
    return torch.tensor(sorted(tokens - {IGNORED}), dtype=torch.long)


def token_indices(targets: Tensor, tokens: Tensor) -> Tensor:
    """Return the index of each target in `tokens`; `IGNORED` stays.

    Args:
        targets: token ids, of any shape.
        tokens: [R] token ids in ascending order.

    Raises:
        ValueError: a target is not in `tokens`.
    """
    indices = torch.searchsorted(tokens, targets.contiguous()).clamp_max(len(tokens) - 1)
    present = targets != IGNORED
    if not torch.equal(tokens[indices][present], targets[present]):
        raise ValueError(
            "head_vocabulary: a target is not among the tokens that occur in the data, to which "
            "the heads' loss is restricted"
        )
    return indices.masked_fill(~present, IGNORED)


def restricted_loss(
    tokens: Tensor, bias: Tensor | None, rule: ChunkLoss, overlap: float = 0.0
) -> ChunkLoss:
    """Return the heads' loss over `tokens` as a loss for `chunked_sum`.

    The returned function takes hidden states [M, H], target indices [M] and the output layer's rows
    of the tokens [R, H].

    Args:
        tokens: [R] token ids.
        bias: [V] of the output layer, or None.
        rule: what the model does to its logits, such as a soft cap.
        overlap: as of `head_loss_sum`.
    """
    some_bias = None if bias is None else bias.index_select(0, tokens)

    def loss(states: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        logits = F.linear(states.to(rows.dtype), rows)
        logits = rule(logits if some_bias is None else logits + some_bias)
        return head_loss_sum(logits, targets, overlap)

    return loss
