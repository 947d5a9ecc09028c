"""Latency of a decoding step on this machine, by the number of nodes it verifies: L(n).

All tree sizes take turns within one round, so that a machine that slows down for a while slows all
of them. The overhead of a size is the median over rounds of its step time, divided by that of plain
decoding in the same round. Every round starts again from the prompt, so that the context does not
grow from round to round.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..core.engine import PLAIN
from ..core.model import TreeModel
from ..core.prefill import left_padded
from ..core.request import StopRule
from ..core.tree import CandidateTree
from ..generation import prepare

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Tree sizes that are timed, in nodes with the root."""


@dataclass
class TimingRounds:
    """A schedule that verifies every tree once a round, in random order, and records step times.

    Attributes:
        trees: the trees to time, of different sizes.
        seconds: step time by number of nodes, for each round.
        seed: seed of the order.
    """

    trees: Sequence[CandidateTree]
    seconds: list[dict[int, float]] = field(default_factory=list)
    seed: int = 0

    def __post_init__(self) -> None:
        self.largest = max(self.trees, key=len)
        self._waiting: list[CandidateTree] = []
        self._random = random.Random(self.seed)

    def tree(self) -> CandidateTree:
        """Return the tree of the next step; starts a round when the last one has ended."""
        if not self._waiting:
            self._waiting = self._random.sample(list(self.trees), len(self.trees))
            self.seconds.append({})
        return self._waiting[-1]

    def observe(
        self, reached: Sequence[int], seconds: float | None, rows: int | None = None
    ) -> None:
        """Record the time of the step that `tree` was called for."""
        if seconds is not None:
            self.seconds[-1][len(self._waiting.pop())] = seconds

    @property
    def between_rounds(self) -> bool:
        """True if the last round has ended."""
        return not self._waiting

    @property
    def finished(self) -> list[dict[int, float]]:
        """The complete rounds without the first, which also packs, compiles and allocates."""
        return [each for each in self.seconds[1:] if len(each) == len(self.trees)]


@dataclass(frozen=True)
class Latency:
    """Measured step times in seconds: `rounds[context][round][nodes]`."""

    rounds: dict[int, list[dict[int, float]]]

    def plain(self) -> float:
        """Return the median time of a plain step in seconds, over all contexts."""
        return statistics.median(each[1] for rounds in self.rounds.values() for each in rounds)

    def overheads(self) -> dict[int, list[float]]:
        """Return by number of nodes each round's step time, divided by that of its plain step."""
        ratios: dict[int, list[float]] = {}
        for rounds in self.rounds.values():
            for each in rounds:
                for nodes, seconds in sorted(each.items()):
                    ratios.setdefault(nodes, []).append(seconds / each[1])
        return ratios

    def curve(self) -> dict[int, float]:
        """Return milliseconds by number of nodes, monotonic even where the measurements are not."""
        largest, milliseconds = 1.0, {}
        for nodes, ratios in sorted(self.overheads().items()):
            largest = max(largest, statistics.median(ratios))
            milliseconds[nodes] = 1000 * self.plain() * largest
        return milliseconds


def measure_latency(
    model: TreeModel,
    text: Sequence[int],
    trees: Sequence[CandidateTree],
    arguments: dict[str, Any],
    *,
    contexts: Sequence[int],
    batch_size: int = 1,
    rounds: int = 20,
    finished: Callable[[int], None] = lambda rounds: None,
) -> Latency:
    """Time decoding steps with each of the trees, drafting and bookkeeping included.

    Args:
        text: token ids that fill the contexts; repeated where it is too short.
        trees: the trees to time; of several trees of one size only the first is timed, and plain
            decoding is added if no tree has one node.
        arguments: keyword arguments of `generate`; lengths and end tokens are ignored.
        contexts: context lengths in tokens at which steps are timed.
        batch_size: rows decoded at once.
        rounds: number of rounds at each context.
        finished: called with the number of rounds measured since the last call.

    Raises:
        ValueError: the model has no positions left for a step after a context.
    """
    # steps are recorded by size, so that a second tree of a size would leave every round incomplete
    by_size = {len(tree): tree for tree in [PLAIN, *reversed(trees)]}
    trees = sorted(by_size.values(), key=len)
    latency: dict[int, list[dict[int, float]]] = {}
    for context in contexts:
        schedule = TimingRounds(trees)
        _run_rounds(model, _repeated(text, context), schedule, arguments, batch_size, rounds)
        latency[context] = schedule.finished
        finished(rounds)
    return Latency(latency)


def usual_contexts(prompts: Sequence[Sequence[int]], answers: Sequence[int]) -> tuple[int, ...]:
    """Return the lower and the upper quartile of the context lengths at which these texts decode.

    Args:
        prompts: token ids of each prompt.
        answers: number of tokens of each answer.
    """
    texts = zip(prompts, answers, strict=False)
    lengths = sorted(len(prompt) + place for prompt, answer in texts for place in range(answer))
    return tuple(sorted({lengths[len(lengths) // 4], lengths[3 * len(lengths) // 4]}))


def _repeated(text: Sequence[int], length: int) -> list[int]:
    """Return the text's first `length` tokens; a shorter text is repeated."""
    repeated = list(text) * (1 + length // max(1, len(text)))
    return repeated[:length]


def _run_rounds(
    model: TreeModel,
    prompt: list[int],
    schedule: TimingRounds,
    arguments: dict[str, Any],
    batch_size: int,
    rounds: int,
) -> None:
    """Decode after the prompt, again for each round, until the schedule has enough rounds."""
    new_tokens = 2 + sum(1 + tree.max_depth for tree in schedule.trees)
    ids, mask = left_padded([prompt] * batch_size, model.device)
    arguments = {
        **arguments,
        "max_new_tokens": new_tokens,
        "max_length": None,
        "eos_token_id": None,
    }
    while len(schedule.finished) < rounds:
        session = prepare(model, ids, attention_mask=mask, tree=schedule, **arguments)
        rounds_before = len(schedule.seconds)
        session.requests = [
            replace(request, stop=partial(_check_without_stopping, request.stop))
            for request in session.requests
        ]
        for _ in session:
            if len(schedule.seconds) > rounds_before and schedule.between_rounds:
                break
        if not session.stats.steps:
            raise ValueError(
                f"a context of {len(prompt)} tokens leaves the model no room for a step to time"
            )


def _check_without_stopping(stop: StopRule, ids: list[int]) -> None:
    """Check the stop rule, whose cost belongs to a step, and ignore its answer."""
    stop(ids)
