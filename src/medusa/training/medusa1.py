"""Medusa-1 from Python: heads on a loaded model, which stays as it is (section 2.2.1).

The backbone runs once over the data; the heads then train on the hidden states it left. Recipes
with checkpoints, adapters and data from files are `medusa train`'s.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..core.model import TreeModel
from ..core.tree import CandidateTree
from ..data.chats import IGNORED, Example
from .hidden import collate_states, states
from .plan import plan
from .progress import progress as shown_progress
from .recipe import Recipe
from .student import Student
from .trainer import StudentTrainer
from .vocabulary import occurring


@dataclass(frozen=True)
class HeadMetrics:
    """How good heads, and the backbone below them, are at texts.

    Attributes:
        accuracy: [K][R] share of positions where head k has the true token among its top r + 1.
        perplexity: the backbone's.
        positions: learnt tokens.
    """

    accuracy: list[list[float]]
    perplexity: float
    positions: int


def train_heads(
    model: TreeModel,
    examples: Sequence[Example],
    recipe: Recipe | None = None,
    progress: bool = True,
) -> list[float]:
    """Train `model.heads` in place on a frozen backbone; returns the loss (eq. 1) of every ten
    steps.

    The hidden states of all learnt tokens are kept in memory.

    Args:
        recipe: of method medusa-1; its options for data, backbone and checkpoints have no effect
            here.
        progress: print the plan, the log and the progress.

    Raises:
        ValueError: heads without residual layers that share the lm_head have nothing to train, or
            the examples have nothing to learn.
    """
    recipe = dataclasses.replace(recipe or Recipe(), save_every=0, evaluate_every=0, packing=False)
    if recipe.backbone_learns:
        raise ValueError(
            f"train_heads leaves the backbone as it is: {recipe.method} is for medusa train"
        )
    parameters = list(model.heads.parameters())
    if not parameters:
        raise ValueError(
            "heads with num_layers=0 that share the lm_head have no parameters to train"
        )
    dtype = parameters[0].dtype
    with _frozen(model.base), torch.enable_grad(), tempfile.TemporaryDirectory() as folder:
        student = Student(model.base, model.heads, recipe.decay)
        found = _states(student, examples, "hidden states" if progress else None)
        kept = [
            (number, hidden.cpu(), targets.cpu())
            for number, hidden, targets in found
            if len(hidden)
        ]
        if recipe.head_vocabulary == "data":
            student.restrict(occurring(examples))
        tokens = sum(len(hidden) for _, hidden, _ in kept)
        for line in plan(recipe, "heads", recipe.epochs, len(kept), tokens) if progress else ():
            print(line)
        model.heads.to(torch.promote_types(dtype, torch.float32)).requires_grad_(True)
        trainer = StudentTrainer(
            student,
            recipe,
            "heads",
            recipe.epochs,
            Path(folder),
            collate_states,
            kept,
            [],
            CandidateTree.default(model.heads.config.num_heads),
            say=print if progress else None,
            use_cpu=model.device.type == "cpu",
        )
        trainer.go()
    model.heads.to(dtype)
    return [float(line["loss"]) for line in trainer.state.log_history if "loss" in line]


@torch.no_grad()
def evaluate_heads(model: TreeModel, examples: Sequence[Example], top: int = 5) -> HeadMetrics:
    """Top-1 to top-`top` accuracy of every head on held-out texts, and the backbone's
    perplexity.
    """
    student = Student(model.base, model.heads)
    hits = torch.zeros(model.heads.config.num_heads, top)
    counts = torch.zeros(1 + model.heads.config.num_heads)
    entropy = 0.0
    for part in _states(student, examples):
        batch = collate_states([part])
        told = student(hidden=batch["hidden"], targets=batch["targets"], top=top)
        hits, counts = hits + told["hits"], counts + told["counts"].cpu()
        entropy += float(told["sums"][0])
    accuracy = hits / counts[1:, None].clamp_min(1)
    return HeadMetrics(accuracy.tolist(), math.exp(entropy / float(counts[0])), int(counts[0]))


def _states(
    student: Student, examples: Sequence[Example], label: str | None = None
) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """The examples' hidden states in memory; progress is shown under `label`."""
    total = sum(len(each.ids) for each in examples)
    with shown_progress(label or "", total, "tokens", print, shown=label is not None) as advance:
        kept = list(states(student, examples, advance=advance))
    if not any(target[:, 1:].ne(IGNORED).any() for _, _, target in kept):
        raise ValueError(
            "no example is long enough: a head foresees the second token after its position"
        )
    return kept


@contextmanager
def _frozen(base: nn.Module) -> Iterator[None]:
    """The base's parameters take no gradient while the context lasts."""
    learning = [parameter for parameter in base.parameters() if parameter.requires_grad]
    training = base.training
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        base.train(training)
