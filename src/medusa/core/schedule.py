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


class History:
    """Durations and tokens of a model's last steps, by nodes; kept from one request to the next.

    Attributes:
        tokens: average tokens that a step gave, or would have given, by nodes.
        since_plain: steps since plain decoding was last timed.
        since_probe: steps since the largest tree was last probed.
        wait: steps between two probes.
    """

    def __init__(self) -> None:
        self.tokens: dict[int, float] = {}
        self.since_plain, self.since_probe, self.wait = 0, 0, WAITS[0]
        self._steps: dict[int, int] = {}
        self._recent: dict[tuple[int, int], deque[float]] = {}
        self._medians: dict[tuple[int, int], float] = {}

    def time(self, nodes: int, seconds: float, rows: int = 1) -> None:
        """Take a step's duration into account."""
        kind = _size_class(rows), nodes
        recent = self._recent.setdefault(kind, deque(maxlen=2 * PROBE))
        recent.append(seconds)
        if len(recent) > 1:
            self._medians[kind] = statistics.median(recent)
        self.since_plain = 0 if nodes == 1 else self.since_plain + 1

    def gain(self, nodes: int, tokens: float) -> None:
        """Take into account how many tokens a step gave, or would have given."""
        steps = self._steps[nodes] = min(self._steps.get(nodes, 0) + 1, MEMORY)
        before = self.tokens.get(nodes, tokens)
        self.tokens[nodes] = before + (tokens - before) / steps

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
        self.calibrated = bool(calibration.made)
        known = self.history.tokens
        self.ladder = [
            Rung(
                each,
                known.get(len(each), each.expected(calibration.accuracies)),
                calibration.cost(len(each)),
            )
            for each in ladder(tree, calibration)
        ]
        self._gains = [
            [_tokens_within(run.tree, rung.tree) for rung in self.ladder[number:]]
            for number, run in enumerate(self.ladder)
        ]
        self.plain = len(self.ladder) - 1
        self.rows = 1  # of the last step
        self.probing, self.timing = 0, 0
        costed = self.calibrated or self.history.overhead(len(tree)) is not None
        self.current = self._best() if known and costed else 0
        self.due = RETIME if costed else WINDOW

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
        return 0 if self.probing else self.current

    def observe(self, reached: Sequence[int], seconds: float | None) -> None:
        ran, self.rows = self._next(), len(reached)
        if self.timed and seconds is not None:
            self.history.time(len(self.ladder[ran].tree), seconds, self.rows)
        rate = 1 / (PROBE if self.probing else WINDOW)
        for rung, gains in zip(self.ladder[ran:], self._gains[ran], strict=True):
            tokens = statistics.fmean(gains[node] for node in reached)
            rung.tokens += rate * (tokens - rung.tokens)
            self.history.gain(len(rung.tree), tokens)
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
            self.current, history = self._best(), self.history
            history.since_probe = 0
            history.wait = WAITS[0] if self.current == 0 else min(2 * history.wait, WAITS[1])

    def _settle(self) -> None:
        """After an ordinary step choose a smaller tree if it seems faster, or begin a due probe."""
        best, history = self._best(), self.history
        if best > self.current and self._speed(best) > MARGIN * self._speed(self.current):
            self.current, history.since_probe = best, 0
        history.since_probe += 1
        if self.current and history.since_probe >= history.wait:
            self.probing = PROBE
        elif self.timed and history.since_plain >= self.due and self.current != self.plain:
            # a median takes two steps
            self.timing = 2 if history.overhead(1, self.rows) is None else 1
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
        if not self.timed:
            return calibrated
        timed = {
            len(rung.tree): overhead
            for rung in self.ladder
            if (overhead := self.history.overhead(len(rung.tree), self.rows)) is not None
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
