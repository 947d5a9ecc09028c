"""Interleaved measurement: every prompt is answered by every method in turn, several times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..hardware.timing import interleaved, paired_ratios, spread
from ..loading import MedusaModel
from .methods import METHODS, Method, Run


@dataclass(frozen=True)
class Prompt:
    """A request to measure.

    Attributes:
        category: the kind of request, by which figures are grouped.
        text: the request as the user wrote it.
        ids: its token ids [1, P], chat template included.
        judge: takes the token ids of an answer; returns True if it is right, False if it is wrong
            and None if no checker exists for the request.
    """

    category: str
    text: str
    ids: Tensor
    judge: Callable[[list[int]], bool | None] = lambda ids: None


@dataclass(frozen=True)
class Comparison:
    """All runs of one prompt: `runs[method]` holds one run for each repeat, in order."""

    prompt: Prompt
    runs: dict[str, list[Run]]

    def seconds(self, method: str) -> float:
        """Return the method's median time without the prefill."""
        return statistics.median(run.seconds for run in self.runs[method])

    def total_seconds(self, method: str) -> float:
        """Return the method's median time, prefill included."""
        return statistics.median(run.total_seconds for run in self.runs[method])

    @property
    def identical(self) -> bool:
        """True if Medusa gave the same tokens as plain decoding, and as `generate` if that ran."""
        others = [name for name in ("plain", "generate") if name in self.runs]
        return all(self.runs[name][0].ids == self.runs["medusa"][0].ids for name in others)

    @property
    def correct(self) -> bool | None:
        """True if Medusa's answer is right; None if the prompt has no checker."""
        return self.prompt.judge(self.runs["medusa"][0].ids)


def compare(
    model: MedusaModel,
    prompts: Iterable[Prompt],
    arguments: dict[str, Any],
    *,
    methods: Sequence[str] = tuple(METHODS),
    others: Mapping[str, Method] | None = None,
    repeats: int = 3,
    seed: int = 0,
) -> Iterable[Comparison]:
    """Answer every prompt by every method, interleaved, and yield one comparison for each prompt.

    Args:
        arguments: keyword arguments of `generate`, the same for all methods.
        methods: names in `METHODS`.
        others: further methods by name, such as another library's; they replace `METHODS` of the
            same name.
        repeats: runs of each prompt by each method; figures use their medians.
        seed: seed of torch's global generator for the first prompt, for sampling. Every run of a
            prompt starts from the same seed; each further prompt adds 1 to it.
    """
    compared = {**{name: METHODS[name] for name in methods}, **(others or {})}
    for number, prompt in enumerate(prompts):
        calls = {
            name: partial(_seeded_run, method, model, prompt, arguments, seed + number)
            for name, method in compared.items()
        }
        yield Comparison(prompt, interleaved(calls, repeats, first=number))


def _seeded_run(
    method: Method, model: MedusaModel, prompt: Prompt, arguments: dict[str, Any], seed: int
) -> Run:
    torch.manual_seed(seed)
    return method(model, prompt.ids, arguments)


@dataclass
class Totals:
    """Figures over a set of comparisons, as the paper's appendix B.1 defines them.

    - Acceleration rate: Medusa's tokens after the prefill, divided by its decoding steps.
    - Overhead: Medusa's median step time, divided by plain decoding's.
    - Speedup: Medusa's tokens a second, divided by another method's. It is given over the whole
      time (`with_prefill`) and over the decoding steps alone, as in the paper.
    """

    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        """Names of the methods that were compared."""
        return list(self.comparisons[0].runs)

    @property
    def baselines(self) -> list[str]:
        """Names of the methods that Medusa is compared with."""
        return [name for name in self.methods if name != "medusa"]

    def rate(self, method: str) -> float:
        """Return the method's tokens a second after the prefill, over all prompts together."""
        return self._sum(method, lambda run: run.tokens) / sum(
            comparison.seconds(method) for comparison in self.comparisons
        )

    def rate_with_prefill(self, method: str) -> float:
        """Return the method's tokens a second, prefill included, over all prompts together."""
        return self._sum(method, lambda run: len(run.ids)) / sum(
            comparison.total_seconds(method) for comparison in self.comparisons
        )

    def first_token_seconds(self, method: str) -> float:
        """Return the method's median time to the first token, over all prompts and repeats."""
        return statistics.median(run.prefill_seconds for run in self._runs(method))

    def spread(
        self, method: str, baseline: str, *, with_prefill: bool = False
    ) -> tuple[float, float]:
        """Return the smallest and the largest speedup of a method over another among the repeats.

        Args:
            with_prefill: take the speedup over the whole time instead of the decoding steps.
        """
        rates = (
            self._rates_by_repeat(method, with_prefill),
            self._rates_by_repeat(baseline, with_prefill),
        )
        return spread(paired_ratios(*rates))

    def step_seconds(self, method: str) -> float:
        """Return the method's median step time; the method must report its steps."""
        return statistics.median(
            seconds for run in self._runs(method) for seconds in run.step_seconds
        )

    def besides_model(self) -> float | None:
        """Return the share of Medusa's step time spent outside the backbone and the heads.

        None if the forwards were not timed, as in a compiled model.
        """
        runs = self._runs("medusa")
        forwards = [run.model_seconds for run in runs if run.model_seconds is not None]
        if len(forwards) < len(runs):
            return None
        return 1 - sum(forwards) / sum(run.seconds for run in runs)

    def summary(self, greedy: bool) -> dict[str, Any]:
        """Return all figures, under the names that `medusa demo --json` uses.

        Args:
            greedy: decoding was greedy, so that the methods' tokens can be compared.
        """
        return {
            "prompts": len(self.comparisons),
            **self._speedups(),
            "first_token_ms": {
                name: 1000 * self.first_token_seconds(name) for name in self.methods
            },
            **self._step_figures(),
            "tokens_per_second": {name: self.rate(name) for name in self.methods},
            "tokens_per_second_with_prefill": {
                name: self.rate_with_prefill(name) for name in self.methods
            },
            **self._quality(greedy),
        }

    def _speedups(self) -> dict[str, Any]:
        """Return Medusa's speedup over each baseline, over the whole time first."""
        speedups: dict[str, Any] = {}
        for name in self.baselines:
            key = f"speedup_over_{name}"
            speedups |= {
                f"{key}_with_prefill": self.rate_with_prefill("medusa")
                / self.rate_with_prefill(name),
                f"{key}_with_prefill_spread": self.spread("medusa", name, with_prefill=True),
                key: self.rate("medusa") / self.rate(name),
                f"{key}_spread": self.spread("medusa", name),
            }
        return speedups

    def _step_figures(self) -> dict[str, Any]:
        """Return Medusa's tokens, steps and step times, and plain decoding's step time."""
        tokens = self._sum("medusa", lambda run: run.tokens)
        steps = self._sum("medusa", lambda run: run.steps)
        return {
            "tokens": int(tokens),
            "steps": int(steps),
            "acceleration_rate": tokens / max(1, steps),
            "overhead": self.step_seconds("medusa") / self.step_seconds("plain"),
            "step_ms": 1000 * self.step_seconds("medusa"),
            "plain_step_ms": 1000 * self.step_seconds("plain"),
            "besides_model": self.besides_model(),
        }

    def _quality(self, greedy: bool) -> dict[str, Any]:
        """Return how many answers are identical to the baselines' and which share is right."""
        verdicts = [each.correct for each in self.comparisons if each.correct is not None]
        identical = [each.identical for each in self.comparisons] if greedy else None
        return {
            "identical": None if identical is None else all(identical),
            "identical_prompts": None if identical is None else sum(identical),
            "correct": sum(verdicts) / len(verdicts) if verdicts else None,
        }

    def _runs(self, method: str) -> list[Run]:
        return [run for comparison in self.comparisons for run in comparison.runs[method]]

    def _sum(self, method: str, value: Callable[[Run], float]) -> float:
        return sum(value(comparison.runs[method][0]) for comparison in self.comparisons)

    def _rates_by_repeat(self, method: str, with_prefill: bool) -> list[float]:
        """Return the method's tokens a second in each repeat, over all prompts together."""
        repeats = zip(*(comparison.runs[method] for comparison in self.comparisons), strict=True)
        if with_prefill:
            return [
                sum(len(run.ids) for run in runs) / sum(run.total_seconds for run in runs)
                for runs in repeats
            ]
        return [
            sum(run.tokens for run in runs) / sum(run.seconds for run in runs) for runs in repeats
        ]
