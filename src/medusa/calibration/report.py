"""Calibration from beginning to end: record, time, choose, and see whether what was predicted comes
true.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.engine import PLAIN
from ..core.model import TreeModel
from ..core.schedule import Calibration
from ..core.tree import CandidateTree
from ..generation import prepare
from ..hardware.provenance import device_name, provenance
from .choice import (
    Interval,
    Prediction,
    choose,
    overhead_interval,
    predictions,
    rate_interval,
    resampled,
    share_interval,
)
from .latency import SIZES, Latency, measure_latency, usual_contexts
from .recording import Recording, record
from .search import expected_rate, joint_tree, likelihoods

Prompts = Sequence[Sequence[int]]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Given what is done and how many parts it has, a context that gives a function to tell of finished
ones.
"""


@dataclass(frozen=True)
class Settings:
    """What is calibrated for.

    Args:
        max_nodes: the largest tree to think of.
        num_heads: use only the first so many; None uses all.
        contexts: lengths of context to time steps at; None takes those of the recorded texts.
        batch_size: rows decoded at once.
        rounds: how often every tree size is timed at each context.
        ranks: how far down the heads' lists are looked.
    """

    max_nodes: int = 64
    num_heads: int | None = None
    contexts: tuple[int, ...] | None = None
    batch_size: int = 1
    rounds: int = 20
    ranks: int = 32

    def check(self, model: TreeModel) -> None:
        """Raise ValueError where the model has too few heads, or too few positions for a context
        and its steps.
        """
        heads, holds = model.heads.config.num_heads, model.positions.trained
        if self.num_heads is not None and self.num_heads > heads:
            raise ValueError(
                f"{self.num_heads} heads are asked for (--heads) and the model has {heads}"
            )
        for context in self.contexts or ():
            if holds is not None and context + self.tokens(heads) > holds:
                raise ValueError(
                    f"a context of {context} tokens (--context) and the steps to time do not fit "
                    f"into the {holds} "
                    f"positions of the model: use at most {max(0, holds - self.tokens(heads))}"
                )

    def tokens(self, heads: int) -> int:
        """Return how many tokens the steps of a round may give at most, with trees of every
        size.
        """
        sizes = [size for size in (1, *SIZES, self.max_nodes) if size <= self.max_nodes]
        return 2 + len(set(sizes)) * (1 + heads)


@dataclass(frozen=True)
class Measured:
    """Decoding with a tree against plain decoding, interleaved, the prefill excluded (appendix
    B.1).

    Attributes:
        tokens, steps: of each prompt with the tree.
        seconds: of each prompt.
        plain_seconds: what plain decoding takes for as many tokens of each prompt.
        step_seconds, plain_step_seconds: medians.
    """

    tokens: list[int]
    steps: list[int]
    seconds: list[float]
    plain_seconds: list[float]
    step_seconds: float
    plain_step_seconds: float

    @property
    def acceleration_rate(self) -> float:
        return sum(self.tokens) / max(1, sum(self.steps))

    @property
    def overhead(self) -> float:
        return self.step_seconds / self.plain_step_seconds

    @property
    def speedup(self) -> float:
        """Of the wall time of all prompts."""
        return sum(self.plain_seconds) / sum(self.seconds)


@dataclass(frozen=True)
class Report:
    """What calibration found; `tree` and `calibration` are what a model decodes by."""

    settings: Settings
    recording: Recording
    latency: Latency
    candidates: list[Prediction]
    chosen: Prediction
    measured: Measured
    made: dict[str, Any]

    @property
    def tree(self) -> CandidateTree:
        return self.chosen.tree

    @property
    def calibration(self) -> Calibration:
        predicted = {
            name: value for name, value in self.predicted().items() if not name.endswith("interval")
        }
        made = {
            **self.made,
            "predicted": predicted,
            "frequencies": likelihoods(self.recording, self.tree),
        }
        return Calibration(
            [row[:10] for row in self.recording.accuracies()], self.latency.curve(), made
        )

    def predicted(self) -> dict[str, Any]:
        """What the chosen tree is expected to give."""
        rates = rate_interval(self.recording, self.tree)
        overheads = overhead_interval(self.latency, len(self.tree))
        return {
            "expected_length": expected_rate(self.recording, self.tree),
            "acceleration_rate": self.chosen.acceleration_rate,
            "acceleration_rate_interval": rates,
            "overhead": self.chosen.overhead,
            "overhead_interval": overheads,
            "speedup": self.chosen.speedup,
            "speedup_interval": (rates[0] / overheads[1], rates[1] / overheads[0]),
        }

    def found(self) -> dict[str, Any]:
        """What it gave on other prompts."""
        told = self.measured
        return {
            "acceleration_rate": told.acceleration_rate,
            "acceleration_rate_interval": resampled(
                [*map(float, told.tokens)], [*map(float, told.steps)]
            ),
            "overhead": told.overhead,
            "speedup": told.speedup,
            "speedup_interval": resampled(told.plain_seconds, told.seconds),
            "prompts": len(told.tokens),
        }

    def by_heads(self) -> list[Prediction]:
        """The best prediction with the first head alone, the first two, ... (section 2.2.3)."""
        return [
            max(
                predictions(self.recording.first(heads), self.latency, self.settings.max_nodes),
                key=_speedup,
            )
            for heads in range(1, self.recording.num_heads + 1)
        ]

    def intervals(self, ranks: int) -> list[list[Interval]]:
        """[K][ranks] 95 % intervals of the accuracies."""
        counts = self.recording.known.sum(0).tolist()
        accuracies = self.recording.accuracies()
        return [
            [share_interval(share, count) for share in row[:ranks]]
            for row, count in zip(accuracies, counts, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain values."""
        overheads = self.latency.overheads()
        return {
            "accuracy": self.recording.accuracies(),
            "accuracy_interval": self.intervals(10),
            "positions": self.recording.known.sum(0).tolist(),
            "joint": [
                {"path": list(path), "probability": share, "positions": len(self.recording.credit)}
                for path, share in self.joint()
            ],
            "latency": {str(nodes): ms for nodes, ms in self.latency.curve().items()},
            "overhead_interval": {
                str(nodes): overhead_interval(self.latency, nodes) for nodes in overheads
            },
            "tree": [list(path) for path in self.tree.paths[1:]],
            "predicted": self.predicted(),
            "measured": self.found(),
            "by_nodes": [_figures(each) for each in self.candidates],
            "by_heads": [_figures(each) for each in self.by_heads()],
            "made": self.made,
        }

    def joint(self) -> list[tuple[tuple[int, ...], float]]:
        """The paths of the largest tree thought of, and the share of positions at which each is
        right.
        """
        tree = self.candidates[-1].tree
        return list(zip(tree.paths, likelihoods(self.recording, tree), strict=True))[1:]


def calibrate(
    model: TreeModel,
    prompts: Prompts,
    others: Prompts,
    arguments: dict[str, Any],
    settings: Settings = Settings(),
    *,
    acceptance: str = "auto",
    work: Path | None = None,
    progress: Progress = lambda title, total: nullcontext(lambda parts: None),
) -> Report:
    """Find the tree that decodes fastest on this machine.

    Args:
        prompts: token ids; the model's own answers to them are what heads are judged on.
        others: token ids of prompts to try the chosen tree on.
        arguments: of `generate`, as the tree will serve: max_new_tokens, do_sample, temperature,
            ...
        acceptance: the policy it will serve.
        work: folder in which an interrupted recording is resumed.
        progress: how progress is shown.

    Raises:
        ValueError: there are no prompts, none of their answers has two tokens, the model has fewer
            heads than `settings` say, or does not hold a context that they name.
    """
    if not prompts or not others:
        raise ValueError("calibration needs prompts: some to record, and others to try the tree on")
    settings.check(model)
    with progress("Recording the heads on the model's own answers", len(prompts)) as finished:
        recording = record(
            model,
            prompts,
            arguments,
            acceptance=acceptance,
            ranks=settings.ranks,
            work=work,
            finished=finished,
        ).first(settings.num_heads or model.heads.config.num_heads)
    if not len(recording.credit):
        raise ValueError(
            "the model's answers to these prompts end at their first token: nothing to calibrate on"
        )
    sizes = [size for size in SIZES if size < settings.max_nodes]
    trees = [joint_tree(recording, size) for size in (*sizes, settings.max_nodes)]
    trees = [
        tree for place, tree in enumerate(trees) if len(tree) > max([0, *map(len, trees[:place])])
    ]
    contexts = settings.contexts or _usual_contexts(model, settings, prompts, recording.lengths)
    with progress("Timing steps", settings.rounds * len(contexts)) as finished:
        latency = measure_latency(
            model,
            [token for prompt in prompts for token in prompt],
            trees,
            {**arguments, "acceptance": acceptance},
            contexts=contexts,
            batch_size=settings.batch_size,
            rounds=settings.rounds,
            finished=finished,
        )
    candidates = predictions(recording, latency, settings.max_nodes)
    chosen = choose(candidates)
    with progress("Trying the tree on other prompts", len(others)) as finished:
        measured = measure(
            model, others, chosen.tree, {**arguments, "acceptance": acceptance}, finished
        )
    made = {
        **provenance(),
        "device": device_name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "base": model.base.config.name_or_path,
        "batch_size": settings.batch_size,
        "contexts": list(contexts),
        "arguments": {name: value for name, value in arguments.items() if _plain_value(value)},
        "acceptance": acceptance,
        "prompts": {"count": len(prompts), "sha256": _digest(prompts)},
    }
    return Report(settings, recording, latency, candidates, chosen, measured, made)


def _usual_contexts(
    model: TreeModel, settings: Settings, prompts: Prompts, answers: Sequence[int]
) -> tuple[int, ...]:
    """Return the texts' usual contexts, no longer than leaves room for the steps to time."""
    holds = model.positions.trained
    most = (
        math.inf if holds is None else max(1, holds - settings.tokens(model.heads.config.num_heads))
    )
    return tuple(sorted({int(min(most, context)) for context in usual_contexts(prompts, answers)}))


def measure(
    model: TreeModel,
    prompts: Prompts,
    tree: CandidateTree,
    arguments: dict[str, Any],
    finished: Callable[[int], None] = lambda prompts: None,
) -> Measured:
    """Decode each prompt with the tree and plainly, in turns."""
    tokens, steps, seconds, plain_seconds = [], [], [], []
    step_seconds: list[float] = []
    plain_step_seconds: list[float] = []
    for number, prompt in enumerate([prompts[0], *prompts]):
        runs = {}
        for each in ((tree, PLAIN), (PLAIN, tree))[number % 2]:
            torch.manual_seed(number)
            session = prepare(
                model, torch.tensor([list(prompt)], device=model.device), tree=each, **arguments
            )
            for _ in session:
                pass
            runs[each is PLAIN] = session.stats
        if not number or not all(stats.steps for stats in runs.values()):
            continue  # the first makes everything ready
        tokens.append(runs[False].tokens)
        steps.append(runs[False].steps)
        seconds.append(runs[False].decoding_seconds)
        plain_seconds.append(runs[True].decoding_seconds / runs[True].tokens * runs[False].tokens)
        step_seconds += runs[False].step_seconds
        plain_step_seconds += runs[True].step_seconds
        finished(1)
    if not tokens:
        raise ValueError(
            "the model's answers to the prompts end at their first token: nothing to measure"
        )
    medians = statistics.median(step_seconds), statistics.median(plain_step_seconds)
    return Measured(tokens, steps, seconds, plain_seconds, *medians)


def _speedup(prediction: Prediction) -> float:
    return prediction.speedup


def _figures(each: Prediction) -> dict[str, float]:
    return {
        "nodes": len(each.tree),
        "depth": each.tree.max_depth,
        "acceleration_rate": each.acceleration_rate,
        "overhead": each.overhead,
        "speedup": each.speedup,
    }


def _plain_value(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _digest(prompts: Prompts) -> str:
    return hashlib.sha256(json.dumps([list(prompt) for prompt in prompts]).encode()).hexdigest()[
        :16
    ]
