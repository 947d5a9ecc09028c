"""The plan of a training stage in words: steps, tokens a step, learning rates, and a warning."""

from __future__ import annotations

import math

from .arguments import count_steps, micro_batch, processes, warmup_steps
from .recipe import Recipe, Stage

FEW_STEPS = 100
"""New heads learn little in fewer steps than these."""
SMALLEST_BATCH = 4
"""Smallest batch size to propose; gradients of smaller batches are too noisy for the learning rate.
"""


def plan(recipe: Recipe, stage: Stage, epochs: float, rows: int, tokens: int) -> list[str]:
    """Return lines that describe a stage; the last one is a warning if its steps are few.

    Args:
        recipe: recipe of the run.
        stage: stage to describe.
        epochs: passes over the data.
        rows: number of examples, or of packed rows.
        tokens: number of tokens trained on in an epoch.
    """
    steps = count_steps(recipe, rows, epochs, recipe.batch_size)
    per_epoch = count_steps(recipe, rows, 1, recipe.batch_size)
    unit = "packed rows" if recipe.packing else "examples"
    heads = recipe.lr * recipe.heads_factor(stage)
    rates = {"heads": f"{heads:.1e}", "backbone": f"{recipe.lr:.1e}"}
    rates["both"] = f"{recipe.lr:.1e} (backbone) and {heads:.1e} (heads)"
    lines = [
        f"plan: {steps} steps of {min(rows, recipe.batch_size)} {unit}, about "
        f"{round(tokens / per_epoch):,} learnt tokens a step; the learning rate rises to "
        f"{rates[stage]} in {warmup_steps(recipe, steps)} steps and then falls to 0 along a cosine"
    ]
    return lines + ([_warning(recipe, epochs, rows, steps)] if steps < FEW_STEPS else [])


def _warning(recipe: Recipe, epochs: float, rows: int, steps: int) -> str:
    """Return a warning about few steps that proposes a smaller batch size or more epochs."""
    warning = (
        f"warning: {steps} step{'s are' if steps > 1 else ' is'} too few for heads to learn much: "
    )
    smaller = _smaller_batch(recipe, epochs, rows)
    if smaller is not None:
        steps = count_steps(recipe, rows, epochs, smaller)
        return f"{warning}--batch-size {smaller} makes {steps}"
    return f"{warning}take more data, or --epochs {math.ceil(epochs * FEW_STEPS / steps)}"


def _smaller_batch(recipe: Recipe, epochs: float, rows: int) -> int | None:
    """Return the largest batch size that gives enough steps; None if none does."""
    devices = processes().num_processes
    for size in range(recipe.batch_size - 1, SMALLEST_BATCH - 1, -1):
        fits = size % (micro_batch(recipe, size) * devices) == 0
        if fits and count_steps(recipe, rows, epochs, size) >= FEW_STEPS:
            return size
    return None
