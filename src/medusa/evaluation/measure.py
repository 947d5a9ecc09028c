"""Interleaved measurement: every prompt by every method in turn, several times, outputs
compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..loading import MedusaModel
from .methods import METHODS, Run


@dataclass(frozen=True)
class Prompt:
    """A request: its text, its token ids [1, P], and how to judge an answer (None where nothing
    can).
    """

    category: str
    text: str
    ids: Tensor
    judge: Callable[[list[int]], bool | None]


@dataclass(frozen=True)
class Comparison:
    """All runs of one prompt: runs[method] in the order of the repeats."""

    prompt: Prompt
    runs: dict[str, list[Run]]

    def seconds(self, method: str) -> float:
        """Median time of the method's decoding, the prefill excluded."""
        return statistics.median(run.seconds for run in self.runs[method])

    def total_seconds(self, method: str) -> float:
        """Median time of the method's answer, the prefill included."""
        return statistics.median(run.seconds + run.prefill_seconds for run in self.runs[method])

    @property
    def identical(self) -> bool:
        """Whether Medusa's tokens are those of `generate` and of plain decoding."""
        return (
            self.runs["medusa"][0].ids == self.runs["generate"][0].ids == self.runs["plain"][0].ids
        )

    @property
    def correct(self) -> bool | None:
        """Whether Medusa's answer is right."""
        return self.prompt.judge(self.runs["medusa"][0].ids)


def compare(
    model: MedusaModel,
    prompts: Iterable[Prompt],
    arguments: dict[str, Any],
    *,
    methods: Sequence[str] = tuple(METHODS),
    repeats: int = 3,
    seed: int = 0,
) -> Iterable[Comparison]:
    """Run every prompt by every method, in an order that rotates so that no method always comes
    first.

    Args:
        arguments: of `generate`, the same for all methods.
        repeats: runs of each prompt and method; medians are reported.
        seed: of torch's global generator, set before each run, for sampling.
    """
    for number, prompt in enumerate(prompts):
        runs: dict[str, list[Run]] = {name: [] for name in methods}
        for repeat in range(repeats):
            shift = (number + repeat) % len(methods)
            for name in (*methods[shift:], *methods[:shift]):
                torch.manual_seed(seed + number)
                runs[name].append(METHODS[name](model, prompt.ids, arguments))
        yield Comparison(prompt, runs)


@dataclass
class Totals:
    """Figures over a set of comparisons, defined as in the paper's appendix B.1.

    Acceleration rate: Medusa's tokens after the prefill over its decoding steps. Overhead: its
        median step time over
    plain decoding's. Speedups: ratios of tokens a second, the prefill excluded, `_with_prefill`
    included.
    """

    comparisons: list[Comparison] = field(default_factory=list)

    def _sum(self, method: str, value: Callable[[Run], float]) -> float:
        return sum(value(comparison.runs[method][0]) for comparison in self.comparisons)

    def rate(self, method: str) -> float:
        """Tokens a second after the prefill, all prompts together."""
        return self._sum(method, lambda run: run.tokens) / sum(
            each.seconds(method) for each in self.comparisons
        )

    def rate_with_prefill(self, method: str) -> float:
        """Tokens a second, the prefill included."""
        return self._sum(method, lambda run: len(run.ids)) / sum(
            each.total_seconds(method) for each in self.comparisons
        )

    def spread(self, method: str, over: str) -> tuple[float, float]:
        """The smallest and the largest speedup of `method` over another among the repeats."""
        repeats = len(self.comparisons[0].runs[method])
        ratios = []
        for repeat in range(repeats):
            rates = [
                sum(each.runs[name][repeat].tokens for each in self.comparisons)
                / sum(each.runs[name][repeat].seconds for each in self.comparisons)
                for name in (method, over)
            ]
            ratios.append(rates[0] / rates[1])
        return min(ratios), max(ratios)

    def step_seconds(self, method: str) -> float:
        """Median duration of a step."""
        return statistics.median(
            seconds
            for each in self.comparisons
            for run in each.runs[method]
            for seconds in run.step_seconds
        )

    def besides_model(self) -> float | None:
        """Share of Medusa's step time not spent in the base model and the heads, where that was
        timed.
        """
        runs = [run for each in self.comparisons for run in each.runs["medusa"]]
        spent = [run.model_seconds for run in runs if run.model_seconds is not None]
        return (
            1 - sum(spent) / sum(run.seconds for run in runs) if len(spent) == len(runs) else None
        )

    def summary(self, greedy: bool) -> dict[str, Any]:
        """The figures under the names that `demo --json` uses."""
        tokens, steps = (
            self._sum("medusa", lambda run: run.tokens),
            self._sum("medusa", lambda run: run.steps),
        )
        verdicts = [each.correct for each in self.comparisons if each.correct is not None]
        others = [name for name in self.comparisons[0].runs if name != "medusa"]
        figures: dict[str, Any] = {
            "prompts": len(self.comparisons),
            "tokens": int(tokens),
            "steps": int(steps),
            "acceleration_rate": tokens / max(1, steps),
            "overhead": self.step_seconds("medusa") / self.step_seconds("plain"),
            "step_ms": 1000 * self.step_seconds("medusa"),
            "plain_step_ms": 1000 * self.step_seconds("plain"),
            "besides_model": self.besides_model(),
            "tokens_per_second": {name: self.rate(name) for name in self.comparisons[0].runs},
            "identical": all(each.identical for each in self.comparisons) if greedy else None,
            "identical_prompts": sum(each.identical for each in self.comparisons)
            if greedy
            else None,
            "correct": sum(verdicts) / len(verdicts) if verdicts else None,
        }
        for name in others:
            figures[f"speedup_over_{name}"] = self.rate("medusa") / self.rate(name)
            figures[f"speedup_over_{name}_spread"] = self.spread("medusa", name)
            figures[f"speedup_over_{name}_with_prefill"] = self.rate_with_prefill(
                "medusa"
            ) / self.rate_with_prefill(name)
        return figures
