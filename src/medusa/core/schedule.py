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
MEMORY = 256
"""Steps over which a model's history averages them."""
WAITS = (32, 512)
"""Steps before the first probe, and maximum between two; a probe without gain doubles the wait."""
RETIME = 128
"""Steps after which a step of plain decoding is timed again.

Without a calibration the first two come after `WINDOW` steps.
"""
PROBING = 0.04
"""Share of the time that probes may take."""
RARELY = 10
"""Factor by which probes are rarer of trees that are too slow even if all is accepted."""
RECENT = 2 * PROBE
"""Durations of which the median is taken."""
DOUBT = 1.2
"""Factor by which a smaller tree may seem to take longer than a larger one."""
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
    """

    tree: CandidateTree
    tokens: float


@dataclass
class Timings:
    """Durations of steps with about the same number of rows.

    Attributes:
        medians: median of the last durations, by nodes.
        since_plain: steps since plain decoding was last timed.
        since_probe: steps since a larger tree was last probed.
        wait: steps between two probes.
    """

    medians: dict[int, float] = field(default_factory=dict)
    since_plain: int = 0
    since_probe: int = 0
    wait: int = WAITS[0]
    _recent: dict[int, deque[float]] = field(default_factory=dict)

    def time(self, nodes: int, seconds: float) -> None:
        """Take a step's duration into account."""
        recent = self._recent.setdefault(nodes, deque(maxlen=RECENT))
        recent.append(seconds)
        if len(recent) > 1:
            # of two the shorter: first steps are slow where they take memory or generate code
            self.medians[nodes] = statistics.median_low(recent)
            self._forget_slower(nodes)
        self.since_plain = 0 if nodes == 1 else self.since_plain + 1

    def is_sure(self, nodes: int) -> bool:
        """Return True if a median is of as many durations as are kept."""
        return len(self._recent.get(nodes, ())) == RECENT

    def _forget_slower(self, nodes: int) -> None:
        """Forget smaller trees that took longer: all steps were slower when they were timed."""
        for other, duration in list(self.medians.items()):
            if other < nodes and duration > DOUBT * self.medians[nodes]:
                del self.medians[other], self._recent[other]


class History:
    """Durations and tokens of a model's last steps, by nodes; kept from one request to the next.

    Attributes:
        tokens: average tokens that a step gave, or would have given, by nodes.
    """

    def __init__(self) -> None:
        self.tokens: dict[int, float] = {}
        self._steps: dict[int, int] = {}
        self._timings: dict[int, Timings] = {}

    def of(self, rows: int) -> Timings:
        """Return the durations of steps with about as many rows: up to the same power of two."""
        return self._timings.setdefault(size_class(rows), Timings())

    def time(self, nodes: int, seconds: float, rows: int = 1) -> None:
        """Take a step's duration into account."""
        self.of(rows).time(nodes, seconds)

    def gain(self, nodes: int, tokens: float) -> None:
        """Take into account how many tokens a step gave, or would have given."""
        steps = self._steps[nodes] = min(self._steps.get(nodes, 0) + 1, MEMORY)
        before = self.tokens.get(nodes, tokens)
        self.tokens[nodes] = before + (tokens - before) / steps

    def overhead(self, nodes: int, rows: int = 1) -> float | None:
        """Return a step's time in plain steps; None where either has not been timed."""
        medians = self.of(rows).medians
        step, plain = medians.get(nodes), medians.get(1)
        return step / plain if step and plain else None


def size_class(rows: int) -> int:
    """Return the next power of two: requests join and leave, and steps of 31 rows are like 32."""
    return 1 << (rows - 1).bit_length()


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

    def observe(self, reached: Sequence[int], seconds: float | None) -> None:
        ran, before, self.rows = self._next(), self.rows, len(reached)
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
            self.timing -= 1
        elif self.probing:
            self._probed()
        else:
            self._settle()

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

    def _settle(self) -> None:
        """After an ordinary step choose a smaller tree if it seems faster, or begin a due probe."""
        best, timings = self._best(), self.timings
        if best > self.current and self._speed(best) > MARGIN * self._speed(self.current):
            self.current, timings.since_probe = best, 0
        timings.since_probe += 1
        if self.current and timings.since_probe >= self._prepare_probe():
            self.probing = PROBE
        elif self.timed and self.current != self.plain and timings.since_plain >= self._due:
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
        extra = self._cost(self.probed) / self._cost(self.current) - 1
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
            # without a calibration only trying the tree tells whether it is dear with many rows
            return self.calibration.cost(size, self.rows if self.calibrated else 1)
        return interpolated(timed, size)


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
