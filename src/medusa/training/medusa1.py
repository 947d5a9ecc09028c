"""Medusa-1: heads on a frozen backbone (paper, section 2.2.1).

The backbone runs once over the data; the heads then train on the hidden states it left, in minutes.
Shapes: M positions, K heads, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

from ..model import TreeModel


@dataclass(frozen=True)
class TrainingConfig:
    """How heads are trained.

    Args:
        epochs: passes over the hidden states.
        batch_size: positions a step.
        lr: peak learning rate of AdamW.
        warmup: share of the steps in which the rate rises to its peak; it then falls along a cosine to 0.
        decay: lambda_k = decay^k of eq. 1 for heads k = 1..K.
        weight_decay: of AdamW.
        seed: of the order of positions.
    """

    epochs: int = 4
    batch_size: int = 256
    lr: float = 1e-3
    warmup: float = 0.05
    decay: float = 0.8
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "decay"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1), got {self.warmup}")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step as a share of its peak."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@dataclass(frozen=True)
class Example:
    """A text to learn from.

    Attributes:
        ids: token ids.
        answer_start: the first token of the answer; what is before it is only read.

    Raises:
        ValueError: the answer starts outside the text.
    """

    ids: list[int]
    answer_start: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.answer_start <= len(self.ids):
            raise ValueError(f"answer_start must lie within the {len(self.ids)} ids, got {self.answer_start}")


@dataclass(frozen=True)
class HeadMetrics:
    """accuracy[k][r]: share of positions where head k has the true token among its top r + 1."""

    accuracy: list[list[float]]
    positions: int


@dataclass(frozen=True)
class HiddenStates:
    """What the heads see and should say: hidden [M, H], targets [M, K] (-100 where the text has ended)."""

    hidden: Tensor
    targets: Tensor


@torch.inference_mode()
def hidden_states(model: TreeModel, examples: Sequence[Example], batch_tokens: int = 8192) -> HiddenStates:
    """Run the backbone once: the lm_head's input at every position before a token of an answer."""
    num_heads = model.heads.config.num_heads
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))
    hidden, targets = [], []
    for group in _groups(order, examples, batch_tokens):
        width = max(len(examples[index].ids) for index in group)
        ids = torch.zeros(len(group), width, dtype=torch.long)
        for line, index in enumerate(group):
            ids[line, : len(examples[index].ids)] = torch.tensor(examples[index].ids)
        states = model.hidden_states(ids.to(model.device))
        for line, index in enumerate(group):
            example = examples[index]
            first, last = max(0, example.answer_start - 1), len(example.ids) - 2
            if last <= first:
                continue
            ahead = torch.full((len(example.ids) + num_heads + 1,), -100)
            ahead[: len(example.ids)] = torch.tensor(example.ids)
            positions = torch.arange(first, last)
            hidden.append(states[line, first:last].clone())
            targets.append(ahead[positions[:, None] + 2 + torch.arange(num_heads)])
    if not hidden:
        raise ValueError("no example is long enough: a head foresees the second token after its position")
    return HiddenStates(torch.cat(hidden), torch.cat(targets).to(hidden[0].device))


def medusa1_loss(logits: Tensor, targets: Tensor, decay: float) -> Tensor:
    """Eq. 1: sum_k lambda_k * cross-entropy of head k, lambda_k = decay^k, k = 1..K.

    Args:
        logits: [K, M, V] of the heads.
        targets: [M, K] the token each head should have said, -100 where there is none.
    """
    losses = [
        decay ** (k + 1)
        * F.cross_entropy(head.float(), targets[:, k], ignore_index=-100, reduction="sum")
        / targets[:, k].ne(-100).sum().clamp_min(1)
        for k, head in enumerate(logits)
    ]
    return torch.stack(losses).sum()


def train_heads(
    model: TreeModel, examples: Sequence[Example], config: TrainingConfig | None = None, progress: bool = True
) -> list[float]:
    """Train `model.heads` in place on a frozen backbone; returns the loss of every step.

    Raises:
        ValueError: heads without residual layers that share the lm_head have nothing to train.
    """
    config = config or TrainingConfig()
    parameters = list(model.heads.parameters())
    if not parameters:
        raise ValueError("heads with num_layers=0 that share the lm_head have no parameters to train")
    data = hidden_states(model, examples)
    dtype, lm_head = parameters[0].dtype, model.lm_head
    precise = torch.promote_types(dtype, torch.float32)  # AdamW's averages do not survive 16 bits
    model.heads.to(precise)
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    frozen = [parameter for parameter in lm_head.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(config.seed)
    steps = config.epochs * math.ceil(len(data.hidden) / config.batch_size)
    losses: list[float] = []
    with torch.enable_grad(), _Frozen(frozen), _bar(progress) as bar:
        task = bar.add_task("training heads", total=steps, loss=float("nan"))
        for step, batch in enumerate(_batches(len(data.hidden), config, generator)):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * config.rate(step, steps)
            logits = model.heads(data.hidden[batch].to(precise), lambda states: lm_head(states.to(dtype)))
            loss = medusa1_loss(logits, data.targets[batch], config.decay)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            bar.update(task, advance=1, loss=sum(losses[-50:]) / len(losses[-50:]))
    model.heads.to(dtype)
    return losses


@torch.inference_mode()
def evaluate_heads(model: TreeModel, examples: Sequence[Example], top: int = 5) -> HeadMetrics:
    """Top-1 to top-`top` accuracy of every head on held-out texts."""
    data = hidden_states(model, examples)
    hits = torch.zeros(model.heads.config.num_heads, top)
    counts = torch.zeros(model.heads.config.num_heads)
    for part in torch.arange(len(data.hidden)).split(2048):
        targets = data.targets[part]
        ranked = model.heads(data.hidden[part], model.lm_head).topk(top, dim=-1).indices
        right = ranked == targets.T[..., None]
        hits += right.cumsum(-1).sum(1).cpu()
        counts += targets.ne(-100).sum(0).cpu()
    return HeadMetrics((hits / counts.clamp_min(1)[:, None]).tolist(), len(data.hidden))


def _groups(order: Sequence[int], examples: Sequence[Example], batch_tokens: int) -> Iterable[list[int]]:
    """Indices in batches whose padded size stays within `batch_tokens`."""
    group: list[int] = []
    for index in order:
        if group and (len(group) + 1) * len(examples[index].ids) > batch_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _batches(count: int, config: TrainingConfig, generator: torch.Generator) -> Iterable[Tensor]:
    for _ in range(config.epochs):
        yield from torch.randperm(count, generator=generator).split(config.batch_size)


class _Frozen:
    """Parameters that take no gradient while the context lasts."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = parameters

    def __enter__(self) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(True)


def _bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
        disable=not shown,
    )
