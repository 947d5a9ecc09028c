"""What a step costs on this machine, by the nodes it verifies: L(n).

All sizes take turns within one round, so that a machine that slows down for a while slows all of
them, and a size's cost is the median over rounds of its time over plain decoding's in the same
round. Every round begins with the prompt alone, so that the context stays as long as it is said to
be.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..core.engine import PLAIN, left_padded
from ..core.model import TreeModel
from ..core.request import StopRule
from ..core.tree import CandidateTree
from ..generation import prepare

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of nodes that are measured."""


@dataclass
class Rounds:
    """A pace that gives every tree a turn, in another order each round, and notes how long each
    took.
    """

    trees: Sequence[CandidateTree]
    seconds: list[dict[int, float]] = field(default_factory=list)
    seed: int = 0

    def __post_init__(self) -> None:
        self.largest = max(self.trees, key=len)
        self._waiting: list[CandidateTree] = []
        self._random = random.Random(self.seed)

    def tree(self) -> CandidateTree:
        if not self._waiting:
            self._waiting = self._random.sample(list(self.trees), len(self.trees))
            self.seconds.append({})
        return self._waiting[-1]

    def observe(self, reached: Sequence[int], seconds: float | None) -> None:
        if seconds is not None:
            self.seconds[-1][len(self._waiting.pop())] = seconds

    @property
    def between(self) -> bool:
        """Whether every tree had as many turns as the others."""
        return not self._waiting

    @property
    def finished(self) -> list[dict[int, float]]:
        """The rounds in which every tree had its turn; the first, in which everything is made
        ready, is left out.
        """
        return [each for each in self.seconds[1:] if len(each) == len(self.trees)]


@dataclass(frozen=True)
class Latency:
    """Seconds of a step: rounds[context][round][nodes]."""

    rounds: dict[int, list[dict[int, float]]]

    def plain(self) -> float:
        """Median seconds of a plain step, over all contexts."""
        return statistics.median(each[1] for rounds in self.rounds.values() for each in rounds)

    def overheads(self) -> dict[int, list[float]]:
        """For each size its time over plain decoding's, round by round."""
        found: dict[int, list[float]] = {}
        for rounds in self.rounds.values():
            for each in rounds:
                for nodes, seconds in sorted(each.items()):
                    found.setdefault(nodes, []).append(seconds / each[1])
        return found

    def curve(self) -> dict[int, float]:
        """Milliseconds by nodes; more nodes never take less, whatever the clock says."""
        most, milliseconds = 1.0, {}
        for nodes, ratios in sorted(self.overheads().items()):
            most = max(most, statistics.median(ratios))
            milliseconds[nodes] = 1000 * self.plain() * most
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
    """Time a step with each of the trees, drafting and bookkeeping included.

    Args:
        text: token ids to fill contexts with; repeated where it is too short.
        trees: of different sizes, plain decoding's among them.
        arguments: of `generate`; its lengths and end tokens are of no account here.
        contexts: lengths of the prompts before the steps.
        batch_size: rows.
        rounds: measured for each context.
        finished: told how many rounds a context had.
    """
    if not any(len(tree) == 1 for tree in trees):
        trees = [PLAIN, *trees]
    return Latency(
        {
            context: _rounds(
                model, _filled(text, context), trees, arguments, batch_size, rounds, finished
            )
            for context in contexts
        }
    )


def usual_contexts(prompts: Sequence[Sequence[int]], answers: Sequence[int]) -> tuple[int, ...]:
    """How long the context is at a quarter and at three quarters of the steps that these texts
    take.

    Args:
        prompts: token ids.
        answers: tokens of each answer.
    """
    told = zip(prompts, answers, strict=False)
    lengths = sorted(len(prompt) + place for prompt, answer in told for place in range(answer))
    return tuple(sorted({lengths[len(lengths) // 4], lengths[3 * len(lengths) // 4]}))


def _never(stop: StopRule, ids: list[int]) -> None:
    """Take the time of a stop rule, and never stop."""
    stop(ids)


def _filled(text: Sequence[int], length: int) -> list[int]:
    repeated = list(text) * (1 + length // max(1, len(text)))
    return repeated[:length]


def _rounds(
    model: TreeModel,
    prompt: list[int],
    trees: Sequence[CandidateTree],
    arguments: dict[str, Any],
    batch_size: int,
    rounds: int,
    finished: Callable[[int], None],
) -> list[dict[int, float]]:
    pace = Rounds(trees)
    most = 2 + sum(1 + tree.max_depth for tree in trees)
    ids, mask = left_padded([prompt] * batch_size, model.device)
    arguments = {**arguments, "max_new_tokens": most, "max_length": None, "eos_token_id": None}
    while len(pace.finished) < rounds:
        begun = len(pace.seconds)
        session = prepare(model, ids, attention_mask=mask, tree=pace, **arguments)
        session.requests = [
            replace(request, stop=partial(_never, request.stop)) for request in session.requests
        ]
        for _ in session:
            if len(pace.seconds) > begun and pace.between:
                break
        if not session.stats.steps:
            raise ValueError(
                f"a context of {len(prompt)} tokens leaves the model no room for a step to time"
            )
    finished(rounds)
    return pace.finished
