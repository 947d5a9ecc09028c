"""The report of `medusa bench`: figures of each method by category and by context, from records.

Figures are those of the paper's appendix B.1. Speeds and speedups are medians over prompts, so that
a prompt that something disturbed does not make the figure.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .methods import Run
from .records import QuestionRecord, TurnRecord

SAMPLES = 1000
"""Resamples of a bootstrap interval."""
WIDE = 0.15
"""An interval wider than this share of its median makes a figure noisy."""
CONTEXTS = (256, 1024, 4096)
"""Upper ends of the groups of prompts by their length in tokens."""
ALL = "all"
PLAIN = "plain"
"""Name of the method whose steps the overhead is relative to."""
CONTEXT = "context "
"""Beginning of the names of groups by length."""


@dataclass(frozen=True)
class Answered:
    """A turn of a question, answered by all methods.

    Attributes:
        runs: by method, one for each round.
    """

    category: str
    turn: TurnRecord
    runs: Mapping[str, Sequence[Run]]

    @classmethod
    def of(cls, records: Iterable[QuestionRecord]) -> list[Answered]:
        """Return the turns of all questions."""
        return [
            cls(
                record.category,
                turn,
                {name: [each.run() for each in rounds] for name, rounds in turn.runs.items()},
            )
            for record in records
            for turn in record.turns
        ]

    def rate(self, method: str) -> float:
        """Return the tokens a second of a method, prefill included: the median of the rounds."""
        return statistics.median(
            run.length / run.total_seconds for run in self.runs[method] if run.length
        )

    def identical(self, method: str, baseline: str) -> bool | None:
        """Return True if both wrote the same tokens; None where the answer is sampled.

        A server tells no tokens: its text is compared, without white space at both ends.
        """
        if self.turn.temperature:
            return None
        one, other = self.runs[method][0], self.runs[baseline][0]
        if one.ids and other.ids:
            return one.ids == other.ids
        return one.text.strip() == other.text.strip()


def report(records: Sequence[QuestionRecord]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the figures of each method in each group of turns: by group, then by method.

    Groups are all turns, the categories, and the lengths of contexts if there are several.
    """
    answered = Answered.of(records)
    groups = {ALL: answered, **grouped(answered, lambda each: each.category)}
    lengths = grouped(answered, lambda each: context_group(len(each.turn.prompt)))
    if len(lengths) > 1:
        groups |= lengths
    return {
        name: {method: figures(turns, method) for method in turns[0].runs}
        for name, turns in groups.items()
    }


def turns_of(records: Iterable[QuestionRecord]) -> list[dict[str, Any]]:
    """Return for each turn the tokens a second and the tokens a step of each method."""
    found = []
    for record in records:
        for number, each in enumerate(Answered.of([record])):
            methods = {
                name: {
                    "tokens_per_second": each.rate(name),
                    "tokens_per_step": tokens_per_step(runs[:1]),
                }
                for name, runs in each.runs.items()
            }
            found.append({"question": record.question, "turn": number, "methods": methods})
    return found


def grouped(
    answered: Sequence[Answered], key: Callable[[Answered], str]
) -> dict[str, list[Answered]]:
    """Return the turns by a key, in order of the first of each."""
    found: dict[str, list[Answered]] = {}
    for each in answered:
        found.setdefault(key(each), []).append(each)
    return found


def context_group(tokens: int) -> str:
    """Return the name of the group of prompts of a length."""
    for end in CONTEXTS:
        if tokens <= end:
            return f"{CONTEXT}up to {end:,}"
    return f"{CONTEXT}over {CONTEXTS[-1]:,}"


def categories(groups: Iterable[str]) -> list[str]:
    """Return the categories among the names of groups."""
    return [name for name in groups if name != ALL and not name.startswith(CONTEXT)]


def figures(answered: Sequence[Answered], method: str) -> dict[str, Any]:
    """Return the figures of a method over some turns.

    Speedups over methods that did not answer all of them are of the turns that they answered.
    """
    runs = [run for each in answered for run in each.runs[method]]
    counts = Counter(count for run in runs for count in run.accepted)
    greedy = [each for each in answered if not each.turn.temperature]
    verdicts = [each.turn.right[method] for each in answered if method in each.turn.right]
    first = next(iter(answered[0].runs))
    step = step_ms(answered, method)
    plain = step_ms(answered, PLAIN) if PLAIN in answered[0].runs else None
    return {
        "turns": len(answered),
        "tokens": sum(each.runs[method][0].length for each in answered),
        "tokens_per_step": tokens_per_step(runs),
        "tokens_per_second": statistics.median(each.rate(method) for each in answered),
        "speedup_over": {
            other: ratio([each for each in answered if other in each.runs], method, other)
            for other in dict.fromkeys(name for each in answered for name in each.runs)
            if other != method
        },
        "first_token_ms": 1000 * statistics.median(run.prefill_seconds for run in runs),
        "total_seconds": statistics.median(run.total_seconds for run in runs),
        "step_ms": step,
        "overhead": step / plain if step and plain else None,
        "ms_per_token": token_times(runs),
        "accepted": {str(count): counts[count] for count in sorted(counts)},
        "drafting_steps": total(run.drafting_steps for run in runs),
        "reached": reached(counts),
        "phases_ms": phase_times(runs),
        "greedy_turns": len(greedy),
        "identical": sum(bool(each.identical(method, first)) for each in greedy),
        "right": statistics.fmean(verdicts) if verdicts else None,
        "perplexity": perplexity(answered, method),
        "device_peak_bytes": max((run.device_peak_bytes or 0 for run in runs), default=0) or None,
        "measured_again": sum(method in each.turn.measured_again for each in answered),
    }


def step_ms(answered: Sequence[Answered], method: str) -> float | None:
    """Return a method's median step time in milliseconds; None if it does not report steps."""
    runs = [run for each in answered for run in each.runs.get(method, ())]
    steps = [seconds for run in runs for seconds in run.step_seconds]
    return 1000 * statistics.median(steps) if steps else None


def tokens_per_step(runs: Sequence[Run]) -> float | None:
    """Return the tokens after the first of each run per step; None if no steps are reported."""
    steps = sum(run.steps for run in runs)
    return sum(run.tokens for run in runs) / steps if steps else None


def total(counts: Iterable[int | None]) -> int | None:
    """Return the sum of counts; None if one of them is None."""
    found = 0
    for count in counts:
        if count is None:
            return None
        found += count
    return found


def perplexity(answered: Sequence[Answered], method: str) -> float | None:
    """Return the perplexity of a method's answers, a mean over tokens; None if it is not known."""
    if any(method not in each.turn.losses for each in answered):
        return None
    tokens = sum(each.runs[method][0].length for each in answered)
    return math.exp(sum(each.turn.losses[method] for each in answered) / tokens)


def ratio(answered: Sequence[Answered], method: str, other: str) -> dict[str, float]:
    """Return the median over turns of the ratio of two methods' rates, with a 95 % interval."""
    ratios = [each.rate(method) / each.rate(other) for each in answered]
    low, high = interval(ratios)
    return {"median": statistics.median(ratios), "low": low, "high": high}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % interval of the median of some values (bootstrap)."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(SAMPLES))
    return medians[int(0.025 * SAMPLES)], medians[int(0.975 * SAMPLES) - 1]


def is_noisy(speedup: Mapping[str, float]) -> bool:
    """Return True if the interval of a speedup is too wide to rely on it."""
    return speedup["high"] - speedup["low"] > WIDE * speedup["median"]


def token_times(runs: Sequence[Run]) -> dict[str, float] | None:
    """Return the time of a token in milliseconds at the 50th and the 95th percentile.

    The tokens of a step share its time.
    """
    times = sorted(
        1000 * seconds / count
        for run in runs
        for seconds, count in zip(run.step_seconds, run.accepted, strict=False)
        for _ in range(count)
    )
    if not times:
        return None
    return {"p50": times[len(times) // 2], "p95": times[int(0.95 * (len(times) - 1))]}


def reached(counts: Mapping[int, int]) -> list[float]:
    """Return for n = 2, 3, ... the share of steps that gave at least n tokens."""
    steps = sum(counts.values())
    return [
        sum(number for count, number in counts.items() if count >= least) / steps
        for least in range(2, max(counts, default=1) + 1)
    ]


def phase_times(runs: Sequence[Run]) -> dict[str, float]:
    """Return the mean time of each phase of a step in milliseconds."""
    steps = sum(run.steps for run in runs if run.phases)
    totals: Counter[str] = Counter()
    for run in runs:
        totals.update(run.phases)
    return {name: 1000 * seconds / steps for name, seconds in totals.items()} if steps else {}
