"""The losses of training, without ever holding the logits of a batch whole.

Logits of all positions and heads are what training Medusa heads takes most memory for: K x M x V
    numbers, and as many
gradients. `chunked` computes a loss of projected states chunk by chunk and keeps gradients alone.
Shapes: M positions, H hidden size, V vocabulary, K heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.chats import IGNORED

CHUNK = 288
"""Positions projected at a time; of 32,000 logits each just over the 32 MiB up to which glibc keeps
freed memory.
"""
GPU_CHUNK = 2048
"""On a GPU, whose products of few rows wait for their weights to be read."""
ChunkLoss = Callable[..., Tensor]


def chunk_size(device: torch.device) -> int:
    """Positions to project at a time on a device."""
    return CHUNK if device.type == "cpu" else GPU_CHUNK


def chunked(
    loss: ChunkLoss,
    per_position: Sequence[Tensor],
    weights: Sequence[Tensor],
    size: int | None = None,
) -> Tensor:
    """The sum of `loss(*chunks, *weights)` over chunks of the positions, with its gradients.

    Args:
        loss: a scalar of chunks [<= size, ...] and the weights.
        per_position: tensors [M, ...] to cut.
        weights: tensors that every chunk is given whole, and that gradients are wanted of; under
            autocast in its dtype.
        size: of a chunk; by default `chunk_size`'s.
    """
    stacked = [tensor[None] for tensor in per_position], [tensor[None] for tensor in weights]
    return chunked_each(loss, *stacked, size)[0]


def chunked_each(
    loss: ChunkLoss,
    per_position: Sequence[Tensor],
    weights: Sequence[Tensor],
    size: int | None = None,
) -> Tensor:
    """K such sums [K], of tensors [K, M, ...] and weights [K, ...]; their gradients are never there
    twice.
    """
    size = chunk_size(per_position[0].device) if size is None else size
    total: Tensor = _Chunked.apply(loss, size, len(per_position), *per_position, *weights)
    return total


class _Chunked(torch.autograd.Function):
    """Computes each chunk's gradients along with its loss, so that nothing of a chunk outlives
    it.
    """

    @staticmethod
    def forward(ctx: Any, loss: ChunkLoss, size: int, cut: int, *tensors: Tensor) -> Tensor:
        wanted = [place for place in range(len(tensors)) if ctx.needs_input_grad[3 + place]]
        grads = {
            place: torch.zeros_like(
                tensors[place], dtype=torch.promote_types(tensors[place].dtype, torch.float32)
            )
            for place in wanted
        }
        count, positions = tensors[0].shape[:2]
        totals = torch.zeros(count, dtype=torch.float32, device=tensors[0].device)
        for each in range(count):
            # cast here: autocast would keep a copy of every chunk's whole weights
            whole = [_as_autocast(tensor[each].detach()) for tensor in tensors[cut:]]
            for begin in range(0, positions, size):
                part = (each, slice(begin, begin + size))
                chunk = [tensor[part].detach() for tensor in tensors[:cut]]
                leaves = [
                    leaf.requires_grad_(place in grads)
                    for place, leaf in enumerate((*chunk, *whole))
                ]
                with torch.enable_grad():
                    value = loss(*leaves)
                totals[each] += value.detach()
                if wanted:
                    found = torch.autograd.grad(
                        value, [leaves[place] for place in wanted], allow_unused=True
                    )
                    for place, grad in zip(wanted, found, strict=True):
                        if grad is not None:
                            grads[place][part if place < cut else each].add_(grad)
        ctx.dtypes = {place: tensors[place].dtype for place in wanted}
        ctx.grads, ctx.count = grads, len(tensors)
        return totals

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        (scales,) = outer
        found: list[Tensor | None] = [None] * ctx.count
        for place, dtype in ctx.dtypes.items():
            grad = ctx.grads.pop(place)
            found[place] = grad.mul_(scales.view(-1, *[1] * (grad.ndim - 1))).to(dtype)
        return None, None, None, *found


def _as_autocast(weight: Tensor) -> Tensor:
    """A float32 weight in the dtype that autocast would compute with."""
    kind = weight.device.type
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        return weight.to(torch.get_autocast_dtype(kind))
    return weight


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log p(target) over positions; logits [M, V], targets [M], `IGNORED` (-100) where
    there is none.
    """
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def divergence_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of KL(teacher || student) over positions (section 2.3.2); logits [M, V] both."""
    return F.kl_div(
        student.float().log_softmax(-1),
        teacher.float().log_softmax(-1),
        log_target=True,
        reduction="sum",
    )


def head_weights(num_heads: int, decay: float) -> list[float]:
    """lambda_k = decay^k of eq. 1, k = 1..K."""
    return [decay**k for k in range(1, num_heads + 1)]


def medusa1_loss(logits: Tensor, targets: Tensor, decay: float) -> Tensor:
    """Eq. 1 from whole logits: sum_k lambda_k * mean cross-entropy of head k.

    Args:
        logits: [K, M, V] of the heads.
        targets: [M, K] the token each head should have said, -100 where there is none.
    """
    parts = [
        weight
        * cross_entropy_sum(logits[k], targets[:, k])
        / targets[:, k].ne(IGNORED).sum().clamp_min(1)
        for k, weight in enumerate(head_weights(len(logits), decay))
    ]
    return torch.stack(parts).sum()


def head_targets(labels: Tensor, segments: Tensor, num_heads: int) -> Tensor:
    """What the heads should say at each position [B, S, K]: head k (from 0) the token k + 2 places
    on.

    Only positions where the backbone's own next token is learnt have targets, as heads are never
    asked elsewhere, and none lies in another example of the row.

    Args:
        labels: [B, S], `IGNORED` where a token is not learnt.
        segments: [B, S] which example of its row a token belongs to.
    """
    ahead = [_ahead(labels, segments, places) for places in range(1, num_heads + 2)]
    own = ahead[0] == IGNORED
    return torch.stack([each.masked_fill(own, IGNORED) for each in ahead[1:]], -1)


def next_targets(labels: Tensor, segments: Tensor) -> Tensor:
    """What the backbone should say at each position [B, S]."""
    return _ahead(labels, segments, 1)


def token_counts(batch: Mapping[str, Tensor], num_heads: int) -> Tensor:
    """[1 + K] how many tokens backbone and heads learn from in a batch."""
    if "targets" in batch:
        return batch["targets"].ne(IGNORED).sum(0)
    labels, segments = batch["labels"], batch["segments"]
    own = next_targets(labels, segments).ne(IGNORED).sum()
    return torch.cat([own[None], head_targets(labels, segments, num_heads).ne(IGNORED).sum((0, 1))])


def _ahead(labels: Tensor, segments: Tensor, places: int) -> Tensor:
    moved = F.pad(labels[:, places:], (0, min(places, labels.shape[1])), value=IGNORED)
    theirs = F.pad(segments[:, places:], (0, min(places, labels.shape[1])), value=-1)
    return moved.masked_fill(theirs != segments, IGNORED)
