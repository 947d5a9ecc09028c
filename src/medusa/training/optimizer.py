"""The optimizer of a training stage: learning rates of heads and backbone, weight decay, Muon."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from .muon import Muon, muon_matrices
from .recipe import MUON, Recipe, Stage
from .training_model import TrainingModel

BITSANDBYTES_LIMIT = 2**31
"""Number of elements of a weight that bitsandbytes cannot count any more."""


def parameter_groups(
    model: nn.Module, recipe: Recipe, stage: Stage, decaying: Collection[str]
) -> list[dict[str, Any]]:
    """Return the trainable parameters, grouped by learning rate and weight decay (section 2.2.2).

    Args:
        model: the model to train, perhaps wrapped.
        recipe: recipe of the run.
        stage: stage of the recipe.
        decaying: names of the parameters that decay; the recipe's weight decay applies to them.
    """
    rates = {False: recipe.lr, True: recipe.lr * recipe.heads_factor(stage)}
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [
        {
            "params": [
                p for n, p in named if _of_heads(n) == of_heads and (n in decaying) == decays
            ],
            "lr": rates[of_heads],
            "weight_decay": recipe.weight_decay if decays else 0.0,  # AdamW's own default is not 0
        }
        for of_heads in (False, True)
        for decays in (True, False)
    ]


def make_optimizer(
    groups: list[dict[str, Any]],
    training_model: TrainingModel,
    recipe: Recipe,
    args: TrainingArguments,
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for the parameter groups.

    `args.optim` is changed to AdamW in 32 bits if bitsandbytes cannot handle a weight.
    """
    if "bnb" in args.optim and any(
        p.numel() >= BITSANDBYTES_LIMIT for group in groups for p in group["params"]
    ):
        warnings.warn(
            "a weight has more elements than bitsandbytes can count: AdamW in 32 bits",
            stacklevel=2,
        )
        args.optim = "adamw_torch"
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, training_model.base)
    matrices = muon_matrices(training_model.base) if recipe.optimizer == MUON else set()
    by_muon = [p for group in groups for p in group["params"] if p in matrices]
    for group in groups:
        group["params"] = [p for p in group["params"] if p not in matrices]
    optimizer: torch.optim.Optimizer = kind(
        [group for group in groups if group["params"]], **settings
    )
    return Muon(by_muon, optimizer, recipe.lr, recipe.weight_decay) if by_muon else optimizer


def _of_heads(name: str) -> bool:
    """Return True for a parameter of the heads; DistributedDataParallel adds "module."."""
    return name.removeprefix("module.").startswith("heads.")
