"""What a task is, and how values and wordings are kept out of training."""

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
    """One request with the answer the model is taught, and what a checker needs to judge any other.

    `facts` holds plain values (strings, numbers, lists, dicts), so that a task can be written as JSON.
    """

    category: str
    prompt: str
    answer: str
    facts: dict[str, Any] = field(default_factory=dict)


class Pool(Generic[T]):
    """Values of which a share is never drawn in training: tests draw only from that share.

    Which values are held out depends on the values themselves (a hash of their text), never on their
    order, so that adding one does not move the others. `held_out=0` shares all values between splits.
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
        return rng.choice(self.values[split])

    def sample(self, rng: random.Random, split: Split, count: int) -> list[T]:
        """`count` different values."""
        return rng.sample(self.values[split], count)
