"""Training losses that never hold the logits of a whole batch in memory.

The logits of all heads, K x M x V numbers, and as many gradients of them, take most of the memory
of training Medusa heads. `chunked_sum` computes a loss of projected hidden states chunk by chunk
and keeps only the gradients.

Shapes: M positions, H hidden size, V vocabulary size, K heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.chats import IGNORED

CPU_CHUNK = 288
"""Positions projected at a time on a CPU. With a vocabulary of 32,000 the float32 logits of a chunk
are just over 32 MiB, the size up to which glibc keeps freed memory instead of returning it.
"""
GPU_CHUNK = 2048
"""Positions projected at a time on a GPU, where small products are bound by reading the weights."""
ChunkLoss = Callable[..., Tensor]
"""Function of chunks [size, ...] and whole weights that returns a scalar loss."""


def chunk_size(device: torch.device) -> int:
    """Return the number of positions to project at a time on a device."""
    return CPU_CHUNK if device.type == "cpu" else GPU_CHUNK


def chunked_sum(
    loss: ChunkLoss,
    per_position: Sequence[Tensor],
    weights: Sequence[Tensor],
    size: int | None = None,
) -> Tensor:
    """Return the sum of `loss(*chunks, *weights)` over chunks of positions; it is differentiable.

    Args:
        loss: scalar function of chunks [<= size, ...] and the weights.
        per_position: tensors [M, ...] that are split into chunks.
        weights: tensors that every chunk gets whole, under autocast in the autocast dtype; they get
            gradients if they require them.
        size: positions in a chunk; by default `chunk_size`.
    """
    stacked = [tensor[None] for tensor in per_position], [tensor[None] for tensor in weights]
    return chunked_sums(loss, *stacked, size)[0]


def chunked_sums(
    loss: ChunkLoss,
    per_position: Sequence[Tensor],
    weights: Sequence[Tensor],
    size: int | None = None,
) -> Tensor:
    """Return K such sums [K], of tensors [K, M, ...] and weights [K, ...].

    One call for all heads keeps one gradient of their stacked weights; K calls would each allocate
    a gradient of the whole stack.
    """
    size = chunk_size(per_position[0].device) if size is None else size
    sums: Tensor = _ChunkedSums.apply(loss, size, len(per_position), *per_position, *weights)
    return sums


class _ChunkedSums(torch.autograd.Function):
    """Sums of chunk losses. The forward pass also computes the gradients, so that chunks are freed.

    `tensors` are first the `cut` tensors to split into chunks, and then the weights.
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
        sums = torch.zeros(count, dtype=torch.float32, device=tensors[0].device)
        for head in range(count):
            # Cast once here: autocast would cast, and keep, the whole weights for every chunk.
            whole = [_as_autocast(tensor[head].detach()) for tensor in tensors[cut:]]
            for begin in range(0, positions, size):
                part = (head, slice(begin, begin + size))
                chunk = [tensor[part].detach() for tensor in tensors[:cut]]
                value, chunk_grads = _loss_and_grads(loss, [*chunk, *whole], wanted)
                sums[head] += value
                for place, grad in zip(wanted, chunk_grads, strict=True):
                    if grad is not None:
                        grads[place][part if place < cut else head].add_(grad)
        ctx.dtypes = {place: tensors[place].dtype for place in wanted}
        ctx.grads, ctx.count = grads, len(tensors)
        return sums

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        (scales,) = outer
        result: list[Tensor | None] = [None] * ctx.count
        for place, dtype in ctx.dtypes.items():
            grad = ctx.grads.pop(place)
            result[place] = grad.mul_(scales.view(-1, *[1] * (grad.ndim - 1))).to(dtype)
        return None, None, None, *result


def _loss_and_grads(
    loss: ChunkLoss, tensors: Sequence[Tensor], wanted: Sequence[int]
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Return a loss, and its gradients for the tensors at the `wanted` places."""
    leaves = [leaf.requires_grad_(place in wanted) for place, leaf in enumerate(tensors)]
    with torch.enable_grad():
        value = loss(*leaves)
    if not wanted:
        return value.detach(), []
    grads = torch.autograd.grad(value, [leaves[place] for place in wanted], allow_unused=True)
    return value.detach(), grads


def _as_autocast(weight: Tensor) -> Tensor:
    """Return a float32 weight in the autocast dtype if autocast is on; other weights unchanged."""
    kind = weight.device.type
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        return weight.to(torch.get_autocast_dtype(kind))
    return weight


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of -log p(target) over positions.

    Args:
        logits: [M, V].
        targets: [M] token ids, `IGNORED` (-100) where there is no target.
    """
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def head_loss_sum(logits: Tensor, targets: Tensor, overlap: float = 0.0) -> Tensor:
    """Return the sum of -log q(target) + overlap * (1 - q(target)) over positions.

    The second term is the total variation between a head's distribution q and its target, a single
    token: the probability that a token drawn from q is rejected. Its gradient is small where a head
    cannot be right, so that training is spent where it can.

    Args:
        logits: [M, V].
        targets: [M] token ids, `IGNORED` (-100) where there is no target.
        overlap: weight of the second term.
    """
    if not overlap:
        return cross_entropy_sum(logits, targets)
    entropy = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")
    rejected = 1 - torch.exp(-entropy)  # 0 where there is no target
    return entropy.sum() + overlap * rejected.sum()


def divergence_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the sum of KL(teacher || student) over positions (section 2.3.2).

    Args:
        student: logits [M, V] of the model in training.
        teacher: logits [M, V] of the original model.
    """
    return F.kl_div(
        student.float().log_softmax(-1),
        teacher.float().log_softmax(-1),
        log_target=True,
        reduction="sum",
    )


def head_weights(num_heads: int, decay: float) -> list[float]:
    """Return lambda_k = decay^k of eq. 1 for k = 1..K."""
    return [decay**k for k in range(1, num_heads + 1)]


def medusa1_loss(logits: Tensor, targets: Tensor, decay: float) -> Tensor:
    """Return the loss of eq. 1 from whole logits: sum_k lambda_k * mean cross-entropy of head k.

    This is the slow reference of the chunked losses.

    Args:
        logits: [K, M, V] of the heads.
        targets: [M, K] target of each head, `IGNORED` (-100) where there is none.
        decay: base of lambda_k = decay^k.
    """
    parts = [
        weight
        * cross_entropy_sum(logits[k], targets[:, k])
        / targets[:, k].ne(IGNORED).sum().clamp_min(1)
        for k, weight in enumerate(head_weights(len(logits), decay))
    ]
    return torch.stack(parts).sum()


def head_targets(labels: Tensor, segments: Tensor, num_heads: int) -> Tensor:
    """Return the heads' targets [B, S, K]: head k (from 0) has the token k + 2 positions ahead.

    A position has targets only if the backbone's next token there is trained on, since decoding
    uses the heads nowhere else. A target never comes from another example of the row.

    Args:
        labels: [B, S] token ids, `IGNORED` for tokens that are context only.
        segments: [B, S] number of each token's example in its row.
        num_heads: K.
    """
    shifted = [_tokens_ahead(labels, segments, places) for places in range(1, num_heads + 2)]
    no_next = shifted[0] == IGNORED
    return torch.stack([targets.masked_fill(no_next, IGNORED) for targets in shifted[1:]], -1)


def next_targets(labels: Tensor, segments: Tensor) -> Tensor:
    """Return the backbone's targets [B, S]: the next token of the same example."""
    return _tokens_ahead(labels, segments, 1)


def token_counts(batch: Mapping[str, Tensor], num_heads: int) -> Tensor:
    """Return the number of targets in a batch [1 + K], of the backbone and of each head."""
    if "targets" in batch:
        return batch["targets"].ne(IGNORED).sum(0)
    labels, segments = batch["labels"], batch["segments"]
    backbone = next_targets(labels, segments).ne(IGNORED).sum()
    heads = head_targets(labels, segments, num_heads).ne(IGNORED).sum((0, 1))
    return torch.cat([backbone[None], heads])


def _tokens_ahead(labels: Tensor, segments: Tensor, places: int) -> Tensor:
    """Return the labels `places` positions ahead, `IGNORED` beyond the end of an example."""
    pad = (0, min(places, labels.shape[1]))
    moved = F.pad(labels[:, places:], pad, value=IGNORED)
    moved_segments = F.pad(segments[:, places:], pad, value=-1)
    return moved.masked_fill(moved_segments != segments, IGNORED)
