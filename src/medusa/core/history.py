"""Durations and tokens of a model's last steps, from which schedules learn."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

PROBE = 4
"""Steps of a probe of the largest tree."""
WAITS = (32, 512)
"""Steps before the first probe, and maximum between two; a probe without gain doubles the wait."""
MEMORY = 256
"""Steps over which a model's history averages them."""
RECENT = 2 * PROBE
"""Durations of which the median is taken."""
DOUBT = 1.2
"""Factor by which a smaller tree may seem to take longer than a larger one."""


@dataclass
class Timings:
    """Durations of steps with about the same number of rows.

    Attributes:
        medians: median of the last durations, by nodes.
        since_plain: steps since plain decoding was last timed.
        since_probe: steps since a larger tree was last probed.
        wait: steps between two probes.
        forgotten: times that plain decoding's durations were forgotten.
    """

    medians: dict[int, float] = field(default_factory=dict)
    since_plain: int = 0
    since_probe: int = 0
    wait: int = WAITS[0]
    forgotten: int = 0
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
                self.forgotten += other == 1


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
