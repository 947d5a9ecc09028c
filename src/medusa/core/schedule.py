"""Which tree each step verifies: always the same, or the one that pays best on the text at hand.

Every tree of a ladder lies within the one before it, down to the root alone, which is plain
decoding. A step with one tree therefore tells what all smaller ones would have accepted; what
larger ones would, a probe finds out now and then.
"""

from __future__ import annotations

import itertools
import statistics
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .tree import PUBLISHED_ACCURACIES, CandidateTree

WINDOW = 16
"""Steps that the averages of accepted tokens look back over."""
PROBE = 4
"""Steps of a probe of the largest tree."""
WAITS = (32, 512)
"""Steps before the first probe, and the most there are between two; every probe in vain doubles the
wait.
"""
RETIME = 128
"""Steps after which one of plain decoding is timed; without a calibration the first two come after
`WINDOW` steps.
"""
MARGIN = 1.03
"""How much better a smaller tree must look to be taken."""
UNMEASURED_COST = 0.02
"""What a node is taken to cost in plain steps, where no latency was measured."""


@dataclass(frozen=True)
class Calibration:
    """What was measured of heads on a machine.

    Attributes:
        accuracies: [K][R] share of positions whose token is in head k's top 1, 2, ... (cumulative).
        latency: milliseconds of a step that verifies n nodes, by n; 1 is plain decoding.
        made: where, with what and on which prompts, and what was predicted.
    """

    accuracies: Sequence[Sequence[float]]
    latency: Mapping[int, float]
    made: Mapping[str, Any] = field(default_factory=dict)

    def cost(self, nodes: int) -> float:
        """The overhead of a step of `nodes` nodes: its time in plain steps, a straight line between
        measured sizes.
        """
        return overhead(self.latency, nodes)


UNCALIBRATED = Calibration(PUBLISHED_ACCURACIES, {1: 1.0, 1001: 1.0 + 1000 * UNMEASURED_COST})
"""What is assumed of heads that nobody has calibrated."""


def overhead(latency: Mapping[int, float], nodes: int) -> float:
    """The time of a step of `nodes` nodes in plain steps, from a latency curve."""
    return interpolated(latency, nodes) / latency[1]


def interpolated(curve: Mapping[int, float], at: int) -> float:
    """The value of a curve between its points, on a straight line; the last line goes on beyond the
    last point.
    """
    points = sorted(curve)
    if len(points) == 1:
        return curve[points[0]]
    place = min(max(bisect_left(points, at), 1), len(points) - 1)
    low, high = points[place - 1], points[place]
    return curve[low] + (curve[high] - curve[low]) * (at - low) / (high - low)


class Pace(Protocol):
    """Chooses each step's tree, and is told what came of it."""

    largest: CandidateTree

    def tree(self) -> CandidateTree:
        """The tree of the next step."""

    def observe(self, reached: Sequence[int], seconds: float) -> None:
        """Take a step into account: the last accepted node of every row that took part, and the
        step's duration.
        """


@dataclass
class Steady:
    """Always the same tree."""

    largest: CandidateTree

    def tree(self) -> CandidateTree:
        return self.largest

    def observe(self, reached: Sequence[int], seconds: float) -> None:
        pass


@dataclass
class Rung:
    """A tree of the ladder.

    Attributes:
        tokens: moving average of the tokens that a step with it gives, or would have given.
        cost: its step time in plain steps, as calibrated.
    """

    tree: CandidateTree
    tokens: float
    cost: float


class StepTimes:
    """How long a model's last steps took, by nodes. A model keeps them from one request to the
    next.
    """

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}
        self.since_plain = 0
        """Steps since plain decoding was last timed."""

    def note(self, nodes: int, seconds: float) -> None:
        """Take a step into account."""
        recent = self._recent.setdefault(nodes, deque(maxlen=2 * PROBE))
        recent.append(seconds)
        if len(recent) > 1:
            self._medians[nodes] = statistics.median(recent)
        self.since_plain = 0 if nodes == 1 else self.since_plain + 1

    def overhead(self, nodes: int) -> float | None:
        """A step's time in plain steps; None where either has not been timed."""
        step, plain = self._medians.get(nodes), self._medians.get(1)
        return step / plain if step and plain else None


class Adaptive:
    """The tree that gives most tokens a second, judged by moving averages; plain decoding where
    none pays.

    Args:
        tree: the largest to use.
        calibration: where averages start, and what nodes cost.
        times: the model's, which correct the calibrated costs. Without them the choice depends on
            accepted tokens only, so that sampling with a seed can be repeated.
    """

    def __init__(
        self,
        tree: CandidateTree,
        calibration: Calibration = UNCALIBRATED,
        times: StepTimes | None = None,
    ):
        self.largest = tree
        self.times = times
        self.ladder = [
            Rung(each, each.expected(calibration.accuracies), calibration.cost(len(each)))
            for each in ladder(tree, calibration)
        ]
        self._gains = [
            [_tokens_within(run.tree, rung.tree) for rung in self.ladder[number:]]
            for number, run in enumerate(self.ladder)
        ]
        self.plain = len(self.ladder) - 1
        self.current = 0
        self.wait, self.since_probe, self.probing = WAITS[0], 0, 0
        self.timing = 0
        known = bool(calibration.made) or (
            times is not None and times.overhead(len(tree)) is not None
        )
        self.due = RETIME if known else WINDOW

    def tree(self) -> CandidateTree:
        return self.ladder[self._next()].tree

    def _next(self) -> int:
        if self.timing:
            return self.plain
        return 0 if self.probing else self.current

    def observe(self, reached: Sequence[int], seconds: float) -> None:
        ran = self._next()
        if self.times is not None:
            self.times.note(len(self.ladder[ran].tree), seconds)
        rate = 1 / (PROBE if self.probing else WINDOW)
        for rung, gains in zip(self.ladder[ran:], self._gains[ran], strict=True):
            rung.tokens += rate * (statistics.fmean(gains[node] for node in reached) - rung.tokens)
        if self.timing:
            self.timing -= 1
        elif self.probing:
            self._probed()
        else:
            self._settle()

    def _probed(self) -> None:
        """After a step of a probe; its last one decides, and makes the next wait longer if it was
        in vain.
        """
        self.probing -= 1
        if not self.probing:
            self.current, self.since_probe = self._best(), 0
            self.wait = WAITS[0] if self.current == 0 else min(2 * self.wait, WAITS[1])

    def _settle(self) -> None:
        """After an ordinary step: go down if that looks better, and see whether a probe or a timing
        is due.
        """
        best = self._best()
        if best > self.current and self._speed(best) > MARGIN * self._speed(self.current):
            self.current, self.since_probe = best, 0
        self.since_probe += 1
        if self.current and self.since_probe >= self.wait:
            self.probing = PROBE
        elif (
            self.times is not None
            and self.times.since_plain >= self.due
            and self.current != self.plain
        ):
            self.timing, self.due = 2 if self.times.overhead(1) is None else 1, RETIME

    def _best(self) -> int:
        return max(range(len(self.ladder)), key=lambda number: (self._speed(number), -number))

    def _speed(self, number: int) -> float:
        """Tokens in the time of a plain step."""
        return self.ladder[number].tokens / self._cost(number)

    def _cost(self, number: int) -> float:
        """Measured where both this rung and plain decoding have been timed; else as calibrated."""
        rung = self.ladder[number]
        return (self.times and self.times.overhead(len(rung.tree))) or rung.cost


def ladder(tree: CandidateTree, calibration: Calibration) -> list[CandidateTree]:
    """The tree, its most probable halves, quarters, ..., and the root alone.

    Without a calibration there is nothing between the tree and the root: who knows what a node
        costs here.
    """
    if not tree.max_depth:
        return [tree]
    halved = itertools.takewhile(
        lambda size: size > 1, (len(tree) >> halvings for halvings in itertools.count(1))
    )
    between = (
        [tree.most_likely(calibration.accuracies, size) for size in halved]
        if calibration.made
        else []
    )
    return [tree, *between, CandidateTree()]


def _tokens_within(tree: CandidateTree, smaller: CandidateTree) -> list[int]:
    """For each node of `tree`: tokens that `smaller` would have given, had it been the last
    accepted one.
    """
    known = set(smaller.paths)
    return [
        1 + max(depth for depth in range(len(path) + 1) if path[:depth] in known)
        for path in tree.paths
    ]
