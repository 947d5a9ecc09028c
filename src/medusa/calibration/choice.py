"""The tree that decodes fastest: the number of nodes where the rate gained is worth the time it
costs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.schedule import overhead
from ..core.tree import CandidateTree
from .latency import Latency
from .recording import Recording
from .search import accepted_length, joint_tree, likelihoods, nested, predicted_rate, replay

WORTH_IT = 1.05
"""A predicted speedup below this is not worth a tree: decode plainly."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Prediction:
    """What a tree is expected to give: acceleration rate, overhead, and speedup, their quotient."""

    tree: CandidateTree
    acceleration_rate: float
    overhead: float

    @property
    def speedup(self) -> float:
        return self.acceleration_rate / self.overhead


def predictions(recording: Recording, latency: Latency, max_nodes: int) -> list[Prediction]:
    """For every number of nodes the best tree, and what to expect of it."""
    curve = latency.curve()
    whole = joint_tree(recording, max_nodes)
    return [
        Prediction(tree, predicted_rate(recording, tree), overhead(curve, len(tree)))
        for tree, _ in nested(whole, likelihoods(recording, whole))
    ]


def choose(candidates: Sequence[Prediction]) -> Prediction:
    """The fastest candidate; plain decoding, the first of them, where none is worth it."""
    best = max(candidates, key=lambda each: each.speedup)
    return best if best.speedup >= WORTH_IT else candidates[0]


def rate_interval(recording: Recording, tree: CandidateTree, samples: int = 400) -> Interval:
    """A 95 % interval of the predicted acceleration rate, by drawing texts again."""
    if recording.certain:
        tokens, steps = replay(recording, tree)
        return resampled([*map(float, tokens)], [*map(float, steps)], samples)
    gained = [
        float(part.sum())
        for part in (1 + accepted_length(recording, tree)).split(list(recording.lengths))
    ]
    return resampled(gained, [float(length) for length in recording.lengths], samples)


def overhead_interval(latency: Latency, nodes: int, samples: int = 400) -> Interval:
    """A 95 % interval of the overhead of a number of nodes, measured or between two such, by
    drawing rounds again.
    """
    rounds = [each for part in latency.rounds.values() for each in part]
    rng = random.Random(0)
    drawn = (Latency({0: rng.choices(rounds, k=len(rounds))}) for _ in range(samples))
    return _middle(sorted(overhead(each.curve(), nodes) for each in drawn))


def resampled(
    numerators: Sequence[float], denominators: Sequence[float], samples: int = 400
) -> Interval:
    """A 95 % interval of the ratio of two sums over the same texts, by drawing texts again
    (bootstrap).
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(numerators), (samples, len(numerators)), generator=generator)
    above, below = torch.tensor(numerators), torch.tensor(denominators)
    return _middle(sorted((above[drawn].sum(1) / below[drawn].sum(1)).tolist()))


def share_interval(share: float, count: int) -> Interval:
    """Wilson's 95 % interval of a share seen in `count` positions."""
    if not count:
        return 0.0, 1.0
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        / (1 + z * z / count)
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    )
    return middle - half, middle + half


def _middle(ordered: Sequence[float]) -> Interval:
    last = len(ordered) - 1
    return ordered[round(0.025 * last)], ordered[round(0.975 * last)]
