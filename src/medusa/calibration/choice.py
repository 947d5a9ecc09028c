"""Choice of the tree: the size at which acceleration rate divided by overhead is largest."""

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
"""Smallest predicted speedup at which a tree is used; below it decoding is plain."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Prediction:
    """Predicted figures of a tree, as the paper's appendix B.1 defines them.

    Attributes:
        tree: the tree.
        acceleration_rate: tokens a step.
        overhead: step time, divided by that of plain decoding.
    """

    tree: CandidateTree
    acceleration_rate: float
    overhead: float

    @property
    def speedup(self) -> float:
        """Tokens a second, divided by those of plain decoding."""
        return self.acceleration_rate / self.overhead


def predictions(recording: Recording, latency: Latency, max_nodes: int) -> list[Prediction]:
    """Return the best tree of 1, 2, ... `max_nodes` nodes, each with its predicted figures."""
    curve = latency.curve()
    largest = joint_tree(recording, max_nodes)
    return [
        Prediction(tree, predicted_rate(recording, tree), overhead(curve, len(tree)))
        for tree, _ in nested(largest, likelihoods(recording, largest))
    ]


def choose(candidates: Sequence[Prediction]) -> Prediction:
    """Return the fastest candidate.

    The first candidate, which is plain decoding, is returned if none reaches `WORTH_IT`.
    """
    best = max(candidates, key=lambda candidate: candidate.speedup)
    return best if best.speedup >= WORTH_IT else candidates[0]


def rate_interval(recording: Recording, tree: CandidateTree, samples: int = 400) -> Interval:
    """Return a 95 % interval of the predicted acceleration rate.

    Args:
        samples: how often the recorded texts are resampled (bootstrap).
    """
    if recording.certain:
        tokens, steps = replay(recording, tree)
        return resampled([*map(float, tokens)], [*map(float, steps)], samples)
    delivered = [
        float(part.sum())
        for part in (1 + accepted_length(recording, tree)).split(list(recording.lengths))
    ]
    return resampled(delivered, [float(length) for length in recording.lengths], samples)


def overhead_interval(latency: Latency, nodes: int, samples: int = 400) -> Interval:
    """Return a 95 % interval of the overhead of a tree size, interpolated if it was not timed.

    Args:
        samples: how often the rounds are resampled (bootstrap).
    """
    rounds = [each for context_rounds in latency.rounds.values() for each in context_rounds]
    rng = random.Random(0)
    drawn = (Latency({0: rng.choices(rounds, k=len(rounds))}) for _ in range(samples))
    return _middle_95(sorted(overhead(each.curve(), nodes) for each in drawn))


def resampled(
    numerators: Sequence[float], denominators: Sequence[float], samples: int = 400
) -> Interval:
    """Return a 95 % interval of the ratio of two sums over the same texts (bootstrap).

    Args:
        numerators, denominators: one value of each text.
        samples: how often the texts are resampled.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(numerators), (samples, len(numerators)), generator=generator)
    above, below = torch.tensor(numerators), torch.tensor(denominators)
    return _middle_95(sorted((above[drawn].sum(1) / below[drawn].sum(1)).tolist()))


def share_interval(share: float, count: int) -> Interval:
    """Return Wilson's 95 % score interval of a share observed over `count` positions."""
    if not count:
        return 0.0, 1.0
    z = 1.96  # the normal distribution's quantile at 97.5 %
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        / (1 + z * z / count)
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    )
    return middle - half, middle + half


def _middle_95(ordered: Sequence[float]) -> Interval:
    """Return the 2.5 % and the 97.5 % quantile of sorted values."""
    last = len(ordered) - 1
    return ordered[round(0.025 * last)], ordered[round(0.975 * last)]
