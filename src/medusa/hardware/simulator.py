"""Predicted speedup of Medusa decoding from a device's roof (section G.3).

The time of a step is the sum of the least times of its products. Verification and acceptance are
left out, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from .devices import Device
from .operators import ModelShape

PAPER_FACTOR = 0.477
"""Factor of the paper's acceleration rate, 0.477 log(candidates)."""

Acceleration = Callable[[int], float]
"""Function of the number of candidates, the root included, to the tokens a step."""


def paper_acceleration(candidates: int) -> float:
    """Return the paper's acceleration rate, 1 + 0.477 ln(candidates).

    The paper writes 0.477 log(candidates). That gives no token for one candidate, where plain
    decoding gives one, and with the natural logarithm 2.0 tokens for 64, where figure 4 shows about
    3. With the 1 it gives 1 and 3.0.
    """
    return 1 + PAPER_FACTOR * math.log(candidates)


def block_seconds(
    shape: ModelShape, device: Device, batch: int, queries: int, context: int
) -> float:
    """Return the least time of the paper's simplified block."""
    works = shape.block(batch, queries, context).values()
    return sum(device.seconds(work) for work in works)


def overhead(shape: ModelShape, device: Device, batch: int, candidates: int, context: int) -> float:
    """Return the time of a block with some candidates, divided by that of plain decoding."""
    plain = block_seconds(shape, device, batch, 1, context)
    return block_seconds(shape, device, batch, candidates, context) / plain


def speedup(
    shape: ModelShape,
    device: Device,
    batch: int,
    candidates: int,
    context: int,
    acceleration: Acceleration = paper_acceleration,
) -> float:
    """Return the predicted speedup over plain decoding: acceleration rate / overhead."""
    return acceleration(candidates) / overhead(shape, device, batch, candidates, context)


def best_candidates(
    shape: ModelShape,
    device: Device,
    batch: int,
    context: int,
    choices: Iterable[int],
    acceleration: Acceleration = paper_acceleration,
) -> tuple[int, float]:
    """Return the number of candidates with the largest speedup, and that speedup."""
    found = {
        count: speedup(shape, device, batch, count, context, acceleration) for count in choices
    }
    best = max(found, key=lambda count: found[count])
    return best, found[best]
