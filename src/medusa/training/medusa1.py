"""Medusa-1 from Python: training of heads on a loaded model, which stays unchanged (section 2.2.1).

The backbone runs once over the data; the heads are then trained on its hidden states. Checkpoints,
adapters and data files are features of `medusa.training.train`.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..core.model import TreeModel
from ..core.tree import CandidateTree
from ..data.chats import IGNORED, Example
from .hidden import ExampleStates, collate_states, hidden_states
from .plan import plan
from .progress import progress as show_progress
from .recipe import Recipe
from .trainer import MedusaTrainer, StageData
from .training_model import TrainingModel
from .vocabulary import frequent_tokens


@dataclass(frozen=True)
class HeadMetrics:
    """Quality of heads, and of the backbone below them, on held-out texts.

    Attributes:
        accuracy: [K][R] share of positions where the target is among head k's best r + 1 tokens.
        perplexity: perplexity of the backbone.
        positions: number of positions measured.
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
    """Train `model.heads` in place on the frozen backbone.

    The hidden states of all positions with a target are kept in memory.

    Args:
        model: a model with heads.
        examples: examples to train on.
        recipe: a recipe of method medusa-1; its options for data, backbone and checkpoints have no
            effect here.
        progress: print the plan, the log and the progress.

    Returns:
        The loss of eq. 1, averaged between two entries of the log (`recipe.log_every` steps).

    Raises:
        ValueError: the recipe trains the backbone, the heads have no parameters, or the examples
            are too short to train on.
    """
    recipe = recipe or Recipe()
    _check(model, recipe)
    states = _states_in_memory(TrainingModel(model.base, model.heads), examples, progress)
    return train_on_states(model, states, recipe, progress)


def train_on_states(
    model: TreeModel,
    states: Iterable[ExampleStates],
    recipe: Recipe | None = None,
    progress: bool = True,
) -> list[float]:
    """Do as `train_heads`, with the backbone's hidden states of the examples.

    Args:
        states: of each example, hidden states [m, H] and targets [m, 1 + K] or more.
    """
    recipe = dataclasses.replace(recipe or Recipe(), save_every=0, evaluate_every=0, packing=False)
    _check(model, recipe)
    num_heads = model.heads.config.num_heads
    kept = [
        (number, hidden.cpu(), targets[:, : 1 + num_heads].cpu())
        for number, hidden, targets in states
        if len(hidden)
    ]
    dtype = next(model.heads.parameters()).dtype
    with _frozen(model.base), torch.enable_grad():
        log = _train(model, kept, recipe, progress)
    model.heads.to(dtype)
    return log


def _check(model: TreeModel, recipe: Recipe) -> None:
    if recipe.backbone_learns:
        raise ValueError(
            f"train_heads leaves the backbone as it is: {recipe.method} is for medusa train"
        )
    if not list(model.heads.parameters()):
        raise ValueError(
            "heads with num_layers=0 that share the lm_head have no parameters to train"
        )


def _train(
    model: TreeModel, states: list[ExampleStates], recipe: Recipe, progress: bool
) -> list[float]:
    """Train the heads, which are then in float32 or more; return the logged losses."""
    training_model = TrainingModel(model.base, model.heads, recipe.decay, overlap=recipe.overlap)
    if recipe.draft_vocab_size:
        found = (targets for _, _, targets in states)
        training_model.restrict_vocabulary(frequent_tokens(found, recipe.draft_vocab_size))
    if progress:
        count = sum(len(hidden) for _, hidden, _ in states)
        for line in plan(recipe, "heads", recipe.epochs, len(states), count):
            print(line)
    dtype = next(model.heads.parameters()).dtype
    # Half precision would lose the optimizer's small updates.
    model.heads.to(torch.promote_types(dtype, torch.float32)).requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = MedusaTrainer(
            training_model,
            recipe,
            "heads",
            recipe.epochs,
            Path(folder),
            StageData(collate_states, states, []),
            CandidateTree.default(model.heads.config.num_heads),
            say=print if progress else None,
            use_cpu=model.device.type == "cpu",
        )
        trainer.train_from_checkpoint()
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def evaluate_heads(model: TreeModel, examples: Sequence[Example], top: int = 5) -> HeadMetrics:
    """Return each head's top-1 to top-`top` accuracy on held-out texts, and the perplexity."""
    states = _states_in_memory(TrainingModel(model.base, model.heads), examples, progress=False)
    return evaluate_on_states(model, states, top)


@torch.no_grad()
def evaluate_on_states(
    model: TreeModel, states: Iterable[ExampleStates], top: int = 5
) -> HeadMetrics:
    """Do as `evaluate_heads`, with hidden states as of `train_on_states`."""
    training_model = TrainingModel(model.base, model.heads)
    num_heads = model.heads.config.num_heads
    hits, counts = torch.zeros(num_heads, top), torch.zeros(1 + num_heads)
    entropy = 0.0
    for each in states:
        batch = collate_states([each])
        targets = batch["targets"][:, : 1 + num_heads]
        result = training_model(hidden=batch["hidden"], targets=targets, top=top)
        hits, counts = hits + result["hits"], counts + result["counts"].cpu()
        entropy += float(result["sums"][0])
    accuracy = hits / counts[1:, None].clamp_min(1)
    return HeadMetrics(accuracy.tolist(), math.exp(entropy / float(counts[0])), int(counts[0]))


def _states_in_memory(
    model: TrainingModel, examples: Sequence[Example], progress: bool
) -> list[ExampleStates]:
    """Return the examples' hidden states and targets; `progress` shows a progress bar."""
    total = sum(len(example.ids) for example in examples)
    with show_progress("hidden states", total, "tokens", print, shown=progress) as advance:
        states = list(hidden_states(model, examples, advance=advance))
    if not any(target[:, 1:].ne(IGNORED).any() for _, _, target in states):
        raise ValueError(
            "no example is long enough: a head foresees the second token after its position"
        )
    return states


@contextmanager
def _frozen(base: nn.Module) -> Iterator[None]:
    """Freeze the parameters of `base` within the context; restore its state afterwards."""
    trainable = [parameter for parameter in base.parameters() if parameter.requires_grad]
    training = base.training
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        base.train(training)
