"""What a stage of training will do, in words: steps, tokens a step, learning rates, and whether
that is enough.
"""

from __future__ import annotations

import math

from .arguments import count_steps, micro_batch, processes, warm_up
from .recipe import Recipe, Stage

FEW = 100
"""Fewer steps than these teach new heads little."""
SMALLEST = 4
"""Smaller batches are not worth proposing: their gradients are too noisy for the learning rate."""


def plan(recipe: Recipe, stage: Stage, epochs: float, rows: int, tokens: int) -> list[str]:
    """Return the lines that tell what a stage will do, the last of them a warning where its steps
    are few.

    Args:
        rows: what batches are made of: examples, or packed rows of several.
        tokens: learnt in an epoch.
    """
    steps = count_steps(recipe, rows, epochs, recipe.batch_size)
    per_epoch = count_steps(recipe, rows, 1, recipe.batch_size)
    unit = "packed rows" if recipe.packing else "examples"
    heads = recipe.lr * recipe.heads_factor(stage)
    rates = {"heads": f"{heads:.1e}", "backbone": f"{recipe.lr:.1e}"}
    rates["both"] = f"{recipe.lr:.1e} (backbone) and {heads:.1e} (heads)"
    lines = [
        f"plan: {steps} steps of {min(rows, recipe.batch_size)} {unit}, about "
        f"{round(tokens / per_epoch):,} learnt "
        f"tokens a step; the learning rate rises to {rates[stage]} in {warm_up(recipe, steps)} "
        "steps and then falls "
        "to 0 along a cosine"
    ]
    return lines + ([_warning(recipe, epochs, rows, steps)] if steps < FEW else [])


def _warning(recipe: Recipe, epochs: float, rows: int, steps: int) -> str:
    told = (
        f"warning: {steps} step{'s are' if steps > 1 else ' is'} too few for heads to learn much: "
    )
    smaller = _smaller_batch(recipe, epochs, rows)
    if smaller is not None:
        return f"{told}--batch-size {smaller} makes {count_steps(recipe, rows, epochs, smaller)}"
    return f"{told}take more data, or --epochs {math.ceil(epochs * FEW / steps)}"


def _smaller_batch(recipe: Recipe, epochs: float, rows: int) -> int | None:
    """Return the largest batch size that makes enough steps; None where none that is large enough
    does.
    """
    devices = processes().num_processes
    for size in range(recipe.batch_size - 1, SMALLEST - 1, -1):
        fits = size % (micro_batch(recipe, size) * devices) == 0
        if fits and count_steps(recipe, rows, epochs, size) >= FEW:
            return size
    return None
