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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .history import PROBE, WAITS, History, Timings, size_class
from .tree import PUBLISHED_ACCURACIES, CandidateTree

WINDOW = 16
"""Steps over which accepted tokens are averaged."""
RETIME = 128
"""Steps after which a step of plain decoding is timed again.

Without a calibration the first two come after `WINDOW` steps.
"""
PROBING = 0.04
"""Share of the time that probes may take."""
RARELY = 10
"""Factor by which probes are rarer of trees that are too slow even if all is accepted."""
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

    def cost(self, nodes: int, rows: int = 1) -> float:
        """Return the time of a step of `nodes` nodes a row in plain steps of as many rows.

        It is interpolated between measured sizes. Latencies are measured with one row; more rows
        are taken for as many more nodes, which rather overestimates what a tree costs.
        """
        several = overhead(self.latency, nodes * rows) / overhead(self.latency, rows)
        return several if rows == 1 else max(1.0, several)


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

    def observe(
        self, reached: Sequence[int], seconds: float | None, rows: int | None = None
    ) -> None:
        """Record a step.

        Args:
            reached: the last accepted node of each row that verified the schedule's tree.
            seconds: duration of the step; None where other rows verified a larger tree in it.
            rows: all rows of the step; by default those of `reached`.
        """


@dataclass
class FixedTree:
    """The schedule that always chooses the same tree."""

    largest: CandidateTree

    def tree(self) -> CandidateTree:
        return self.largest

    def observe(
        self, reached: Sequence[int], seconds: float | None, rows: int | None = None
    ) -> None:
        pass


@dataclass
class Rung:
    """A tree of the ladder.

    Attributes:
        tokens: moving average of the tokens that a step with it gives, or would have given.
    """

    tree: CandidateTree
    tokens: float


class AdaptiveTree:
    """The schedule that chooses the tree with most tokens a second, or plain decoding.

    What a tree costs depends on the number of rows, so durations are kept for each power of two.
    When the rows of a step are many more or fewer than before, the next step has the tree that is
    fastest there.

    Args:
        tree: the largest tree to use.
        calibration: gives the first averages of accepted tokens, and the costs of nodes.
        history: earlier steps of the model, which tell what a tree costs here, and what it gave in
            other texts. Without them the choice depends on this text's accepted tokens only, so
            that sampling with a seed can be repeated.
    """

    def __init__(
        self,
        tree: CandidateTree,
        calibration: Calibration = UNCALIBRATED,
        history: History | None = None,
    ):
        self.largest = tree
        self.timed, self.history = history is not None, history or History()
        self.calibration, self.calibrated = calibration, bool(calibration.made)
        known = self.history.tokens
        self.ladder = [
            Rung(each, known.get(len(each), each.expected(calibration.accuracies)))
            for each in ladder(tree, calibration)
        ]
        self._gains = [
            [_tokens_within(run.tree, rung.tree) for rung in self.ladder[number:]]
            for number, run in enumerate(self.ladder)
        ]
        self.plain = len(self.ladder) - 1
        self.rows = 1  # of the last step
        self.probing, self.probed, self.timing = 0, 0, 0
        costed = self.calibrated or self.history.overhead(len(tree)) is not None
        self.current = self._best() if known and costed else 0

    def fork(self) -> AdaptiveTree:
        """Return a copy, which from then on learns from its own rows."""
        other = copy.copy(self)
        other.ladder = [copy.copy(rung) for rung in self.ladder]
        if not self.timed:
            other.history = copy.deepcopy(self.history)
        return other

    def tree(self) -> CandidateTree:
        return self.ladder[self._next()].tree

    def _next(self) -> int:
        if self.timing:
            return self.plain
        return self.probed if self.probing else self.current

    @property
    def timings(self) -> Timings:
        """Durations of steps with as many rows as the last one."""
        return self.history.of(self.rows)

    def observe(
        self, reached: Sequence[int], seconds: float | None, rows: int | None = None
    ) -> None:
        ran, before, self.rows = self._next(), self.rows, rows or len(reached)
        if self.timed and seconds is not None:
            self.history.time(len(self.ladder[ran].tree), seconds, self.rows)
        rate = 1 / (PROBE if self.probing else WINDOW)
        for rung, gains in zip(self.ladder[ran:], self._gains[ran], strict=True):
            tokens = statistics.fmean(gains[node] for node in reached)
            rung.tokens += rate * (tokens - rung.tokens)
            self.history.gain(len(rung.tree), tokens)
        if self.timed and size_class(before) != size_class(self.rows):
            self._reload()
        elif self.timing:
            self.timing = self.timing - 1 if seconds is not None else 0
        elif self.probing:
            self._probed()
        else:
            self._settle(can_time=self.timed and seconds is not None)

    def _reload(self) -> None:
        """Begin anew with another number of rows: choose the tree that seems fastest there."""
        self.probing, self.timing, self.current = 0, 0, self._best()

    def _is_timed(self, number: int) -> bool:
        """Return True if a tree was timed with about as many rows as the last step had."""
        return self.history.overhead(len(self.ladder[number].tree), self.rows) is not None

    @property
    def _due(self) -> int:
        """Steps after which plain decoding is timed again, or for the first time."""
        if self._is_timed(self.plain):
            return RETIME
        if self.timings.forgotten:
            return min(PROBE << self.timings.forgotten, RETIME)
        if self.rows > 1:
            return PROBE  # a calibration is made with one row, and tells little about others
        return RETIME if self.calibrated else WINDOW

    def _probed(self) -> None:
        """End a probe after its last step: choose the best tree; without gain, wait longer."""
        self.probing -= 1
        if not self.probing:
            self.current, timings = self._best(), self.timings
            timings.since_probe = 0
            paid = self.current <= self.probed
            timings.wait = WAITS[0] if paid else min(2 * timings.wait, WAITS[1])

    def _settle(self, can_time: bool) -> None:
        """After an ordinary step choose a smaller tree if it seems faster, or begin a due probe.

        Args:
            can_time: plain decoding may be timed now.
        """
        best, timings = self._best(), self.timings
        unknown = timings.forgotten and not self._is_timed(self.plain)
        faster = self._speed(best) > MARGIN * self._speed(self.current)
        if best > self.current and faster and not unknown:
            self.current, timings.since_probe = best, 0
        timings.since_probe += 1
        if self.current and timings.since_probe >= self._prepare_probe():
            self.probing = PROBE
        elif can_time and self.current != self.plain and timings.since_plain >= self._due:
            self.timing = 1 if self._is_timed(self.plain) else 2  # a median takes two steps

    def _prepare_probe(self) -> float:
        """Choose a larger tree to probe; return the steps after which the probe is due.

        It is the largest that would be faster if its longest candidate were always accepted. If
        there is none, the next larger tree is probed rarely, as costs may change. Probes take no
        more than their share of the time, except of a tree that was timed in few steps.
        """
        least = MARGIN * self._speed(self.current)
        promising = (
            number
            for number in range(self.current)
            if (1 + self.ladder[number].tree.max_depth) / self._cost(number) > least
        )
        number = next(promising, None)
        share = PROBING / RARELY if number is None else PROBING
        self.probed = self.current - 1 if number is None else number
        wait = self.timings.wait
        if self.timed and not self.timings.is_sure(len(self.ladder[self.probed].tree)):
            return wait
        cost = self._cost(self.probed)
        if self.calibrated:  # a tree that was timed while the machine was busy is not given up
            cost = min(cost, self._assumed_cost(self.probed))
        extra = cost / self._cost(self.current) - 1
        return max(wait, PROBE * extra / share)

    def _best(self) -> int:
        return max(range(len(self.ladder)), key=lambda number: (self._speed(number), -number))

    def _speed(self, number: int) -> float:
        """Return the tokens that a tree of the ladder gives in the time of a plain step."""
        return self.ladder[number].tokens / self._cost(number)

    def _cost(self, number: int) -> float:
        """Return a rung's cost in plain steps.

        It is measured if the rung and plain decoding were timed with about as many rows. Otherwise
        it is calibrated, or lies between those of the sizes that were timed, if the calibration is
        not of this machine or the rows are several.
        """
        size = len(self.ladder[number].tree)
        if not self.timed:
            return self.calibration.cost(size)
        timed = {
            len(rung.tree): overhead
            for rung in self.ladder
            if (overhead := self.history.overhead(len(rung.tree), self.rows)) is not None
        }
        if size in timed:
            return timed[size]
        if len(timed) < 2 or (self.calibrated and self.rows == 1):
            return self._assumed_cost(number)
        return interpolated(timed, size)

    def _assumed_cost(self, number: int) -> float:
        """Return a rung's calibrated cost in plain steps, or what is assumed without calibration.

        Without one, only trying the tree tells whether it is dear with many rows.
        """
        rows = self.rows if self.calibrated else 1
        return self.calibration.cost(len(self.ladder[number].tree), rows)


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
