"""Prompts that differ from each other, made from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

PATIENCE = 1000
"""Repeated prompts in a row after which there are thought to be no others."""


def different(make: Callable[[random.Random], str], count: int, seed: int) -> Iterator[str]:
    """Yield different prompts; the same ones for the same seed.

    Args:
        make: returns a random prompt.

    Raises:
        ValueError: there are not so many.
    """
    rng = random.Random(seed)
    given: set[str] = set()
    repeated = 0
    while len(given) < count:
        prompt = make(rng)
        if prompt not in given:
            given.add(prompt)
            repeated = 0
            yield prompt
        elif (repeated := repeated + 1) > PATIENCE:
            raise ValueError(f"there are fewer than {count} different prompts of this kind")
