"""Tree schedules choose the tree of each step: always the same one, or the fastest for the text.

A ladder is a list of trees. Each tree contains the next one; the last is the root alone, which is
plain decoding. A step with one tree therefore shows what all smaller trees would have accepted.
Larger trees are probed from time to time.
"""

from __future__ import annotations

import copy
import itertools
import statistics
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .tree import PUBLISHED_ACCURACIES, CandidateTree

WINDOW = 16
"""Steps over which accepted tokens are averaged."""
PROBE = 4
"""Steps of a probe of the largest tree."""
WAITS = (32, 512)
"""Steps before the first probe, and maximum between two; a probe without gain doubles the wait."""
RETIME = 128
"""Steps after which a step of plain decoding is timed again.

Without a calibration the first two come after `WINDOW` steps.
"""
MARGIN = 1.03
"""Factor by which a smaller tree must seem faster before it is chosen."""
UNMEASURED_COST = 0.02
"""Assumed cost of a node, in plain steps, where no latency was measured."""


@dataclass(frozen=True)
class Calibration:
    """Measurements of heads on a machine.

    Attributes:
        accuracies: [K][R] share of positions whose token is in head k's top 1, 2, ... (cumulative).
        latency: milliseconds of a step that verifies n nodes, by n; 1 is plain decoding.
        made: device, versions and prompts of the measurement, and the predicted figures.
    """

    accuracies: Sequence[Sequence[float]]
    latency: Mapping[int, float]
    made: Mapping[str, Any] = field(default_factory=dict)

    def cost(self, nodes: int) -> float:
        """Return the overhead of a step of `nodes` nodes, interpolated between measured sizes."""
        return overhead(self.latency, nodes)


UNCALIBRATED = Calibration(PUBLISHED_ACCURACIES, {1: 1.0, 1001: 1.0 + 1000 * UNMEASURED_COST})
"""The calibration that is assumed for heads without one."""


def overhead(latency: Mapping[int, float], nodes: int) -> float:
    """Return the time of a step of `nodes` nodes in plain steps, from a latency curve."""
    return interpolated(latency, nodes) / latency[1]


def interpolated(curve: Mapping[int, float], at: int) -> float:
    """Return a curve's value on the straight line between its points, or beyond the last two."""
    points = sorted(curve)
    if len(points) == 1:
        return curve[points[0]]
    place = min(max(bisect_left(points, at), 1), len(points) - 1)
    low, high = points[place - 1], points[place]
    return curve[low] + (curve[high] - curve[low]) * (at - low) / (high - low)


class TreeSchedule(Protocol):
    """A rule that chooses the tree of each step. Requests may share a schedule."""

    largest: CandidateTree

    def tree(self) -> CandidateTree:
        """Return the tree of the next step."""

    def observe(self, reached: Sequence[int], seconds: float | None) -> None:
        """Record a step.

        Args:
            reached: the last accepted node of each row that verified the schedule's tree.
            seconds: duration of the step; None where other rows verified other trees in it.
        """


@dataclass
class FixedTree:
    """The schedule that always chooses the same tree."""

    largest: CandidateTree

    def tree(self) -> CandidateTree:
        return self.largest

    def observe(self, reached: Sequence[int], seconds: float | None) -> None:
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
    """Durations of a model's last steps, by rows and nodes; kept from one request to the next.

    Attributes:
        since_plain: steps since plain decoding was last timed.
    """

    def __init__(self) -> None:
        self._recent: dict[tuple[int, int], deque[float]] = {}
        self._medians: dict[tuple[int, int], float] = {}
        self.since_plain = 0

    def note(self, nodes: int, seconds: float, rows: int = 1) -> None:
        """Take a step into account."""
        kind = _size_class(rows), nodes
        recent = self._recent.setdefault(kind, deque(maxlen=2 * PROBE))
        recent.append(seconds)
        if len(recent) > 1:
            self._medians[kind] = statistics.median(recent)
        self.since_plain = 0 if nodes == 1 else self.since_plain + 1

    def overhead(self, nodes: int, rows: int = 1) -> float | None:
        """Return a step's time in plain steps; None where either has not been timed."""
        size = _size_class(rows)
        step, plain = self._medians.get((size, nodes)), self._medians.get((size, 1))
        return step / plain if step and plain else None


def _size_class(rows: int) -> int:
    """Return the next power of two: requests join and leave, and steps of 31 rows are like 32."""
    return 1 << (rows - 1).bit_length()


class AdaptiveTree:
    """The schedule that chooses the tree with most tokens a second, or plain decoding.

    Args:
        tree: the largest tree to use.
        calibration: gives the first averages of accepted tokens, and the costs of nodes.
        times: step times of the model, which correct the calibrated costs. Without them the choice
            depends on accepted tokens only, so that sampling with a seed can be repeated.
    """

    def __init__(
        self,
        tree: CandidateTree,
        calibration: Calibration = UNCALIBRATED,
        times: StepTimes | None = None,
    ):
        self.largest = tree
        self.times = times
        self.calibrated = bool(calibration.made)
        self.ladder = [
            Rung(each, each.expected(calibration.accuracies), calibration.cost(len(each)))
            for each in ladder(tree, calibration)
        ]
        self._gains = [
            [_tokens_within(run.tree, rung.tree) for rung in self.ladder[number:]]
            for number, run in enumerate(self.ladder)
        ]
        self.plain = len(self.ladder) - 1
        self.rows = 1  # of the last step
        self.current = 0
        self.wait, self.since_probe, self.probing = WAITS[0], 0, 0
        self.timing = 0
        known = self.calibrated or (times is not None and times.overhead(len(tree)) is not None)
        self.due = RETIME if known else WINDOW

    def fork(self) -> AdaptiveTree:
        """Return a copy, which from then on learns from its own rows."""
        other = copy.copy(self)
        other.ladder = [copy.copy(rung) for rung in self.ladder]
        return other

    def tree(self) -> CandidateTree:
        return self.ladder[self._next()].tree

    def _next(self) -> int:
        if self.timing:
            return self.plain
        return 0 if self.probing else self.current

    def observe(self, reached: Sequence[int], seconds: float | None) -> None:
        ran, self.rows = self._next(), len(reached)
        if self.times is not None and seconds is not None:
            self.times.note(len(self.ladder[ran].tree), seconds, self.rows)
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
        """End a probe after its last step: choose the best tree; without gain, wait longer."""
        self.probing -= 1
        if not self.probing:
            self.current, self.since_probe = self._best(), 0
            self.wait = WAITS[0] if self.current == 0 else min(2 * self.wait, WAITS[1])

    def _settle(self) -> None:
        """After an ordinary step choose a smaller tree if it seems faster, or begin a due probe."""
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
            # a median takes two steps
            self.timing = 2 if self.times.overhead(1, self.rows) is None else 1
            self.due = RETIME

    def _best(self) -> int:
        return max(range(len(self.ladder)), key=lambda number: (self._speed(number), -number))

    def _speed(self, number: int) -> float:
        """Return the tokens that a tree of the ladder gives in the time of a plain step."""
        return self.ladder[number].tokens / self._cost(number)

    def _cost(self, number: int) -> float:
        """Return a rung's cost in plain steps.

        It is measured if the rung and plain decoding were timed, else calibrated. Without a
        calibration for this machine it lies between those of the sizes that were timed.
        """
        size, calibrated = len(self.ladder[number].tree), self.ladder[number].cost
        if self.times is None:
            return calibrated
        timed = {
            len(rung.tree): overhead
            for rung in self.ladder
            if (overhead := self.times.overhead(len(rung.tree), self.rows)) is not None
        }
        if size in timed:
            return timed[size]
        return calibrated if self.calibrated or len(timed) < 2 else interpolated(timed, size)


def ladder(tree: CandidateTree, calibration: Calibration) -> list[CandidateTree]:
    """Return the tree, its most probable halves, quarters, ..., and the root alone.

    If nothing was measured about the heads, the ladder is the tree and the root.
    """
    if not tree.max_depth:
        return [tree]
    halved = itertools.takewhile(
        lambda size: size > 1, (len(tree) >> halvings for halvings in itertools.count(1))
    )
    between = (
        [tree.most_likely(calibration.accuracies, size) for size in halved]
        if calibration is not UNCALIBRATED
        else []
    )
    return [tree, *between, CandidateTree()]


def _tokens_within(tree: CandidateTree, smaller: CandidateTree) -> list[int]:
    """Return for each node of `tree`, as the last accepted one, the tokens `smaller` would give."""
    paths = set(smaller.paths)
    return [
        1 + max(depth for depth in range(len(path) + 1) if path[:depth] in paths)
        for path in tree.paths
    ]
