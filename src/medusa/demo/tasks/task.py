"""The type of a task, and pools of values that are split between training and tests."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

Split = Literal["train", "test"]
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """A request with its reference answer.

    Attributes:
        category: name of the task's category.
        prompt: the request.
        answer: the reference answer, which the model is trained on.
        facts: what the category's checker needs to judge an answer. It holds only strings, numbers,
            lists and dictionaries, so that a task can be stored as JSON.
    """

    category: str
    prompt: str
    answer: str
    facts: dict[str, Any] = field(default_factory=dict)


class Pool(Generic[T]):
    """Values that are split into a share for training and a held-out share for tests.

    A hash of each value decides its share, so that adding a value hardly moves the others.

    Args:
        values: the values; duplicates are dropped.
        held_out: held-out fraction; with 0, both splits draw from all values.
    """

    def __init__(self, values: Sequence[T], held_out: float = 0.2):
        ranked = sorted(
            dict.fromkeys(values), key=lambda value: hashlib.sha256(str(value).encode()).digest()
        )
        count = round(held_out * len(ranked))
        self.values: dict[Split, list[T]] = {
            "train": ranked[count:],
            "test": ranked[:count] if count else ranked,
        }

    def __len__(self) -> int:
        return len(set(map(str, self.values["train"] + self.values["test"])))

    def pick(self, rng: random.Random, split: Split) -> T:
        """Return a random value of a split."""
        return rng.choice(self.values[split])

    def sample(self, rng: random.Random, split: Split, count: int) -> list[T]:
        """Return `count` different random values of a split."""
        return rng.sample(self.values[split], count)
