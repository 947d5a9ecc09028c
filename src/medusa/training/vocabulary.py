"""Draft vocabulary: the heads learn and propose only the most frequent tokens of the data.

All other tokens are left out of the softmax, and positions where one of them is the target are left
out of the loss. With R tokens of V, the products with the heads' output layers cost R / V of what
they cost over the whole vocabulary, in training as in decoding (`MedusaHeads.token_map`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..data.chats import IGNORED


def frequent_tokens(targets: Iterable[Tensor | Sequence[int]], size: int) -> Tensor:
    """Return the ids of the most frequent targets, in ascending order [R <= size].

    Among tokens that occur equally often, lower ids come first. R is below `size` if fewer tokens
    occur.

    Args:
        targets: tensors or lists of token ids, with `IGNORED` where there is no target.
        size: largest number of tokens.
    """
    counts: Counter[int] = Counter()
    for each in targets:
        counts.update(each.flatten().tolist() if isinstance(each, Tensor) else each)
    counts.pop(IGNORED, None)
    order = sorted(counts, key=lambda token: (-counts[token], token))
    return torch.tensor(sorted(order[:size]), dtype=torch.long)


def token_indices(targets: Tensor, tokens: Tensor) -> Tensor:
    """Return the index of each target in `tokens`; `IGNORED` for targets that are not in it.

    Args:
        targets: token ids, of any shape.
        tokens: [R] token ids in ascending order.
    """
    indices = torch.searchsorted(tokens, targets.contiguous()).clamp_max(len(tokens) - 1)
    return indices.masked_fill(tokens[indices] != targets, IGNORED)
