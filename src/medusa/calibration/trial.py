"""Trial of a tree: it decodes prompts, interleaved with plain decoding."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..core.engine import PLAIN
from ..core.model import TreeModel
from ..core.request import DecodingStats
from ..core.tree import CandidateTree
from ..hardware.timing import interleaved
from .decoding import decode_batch
from .settings import PromptIds


@dataclass(frozen=True)
class TreeMeasurement:
    """Decoding with a tree compared with plain decoding, without the prefill (appendix B.1).

    Attributes:
        tokens, steps: of each prompt, decoded with the tree.
        seconds: of each prompt, decoded with the tree.
        plain_seconds: of each prompt, decoded plainly, scaled to the tree's number of tokens.
        step_seconds, plain_step_seconds: median step times.
    """

    tokens: list[int]
    steps: list[int]
    seconds: list[float]
    plain_seconds: list[float]
    step_seconds: float
    plain_step_seconds: float

    @property
    def acceleration_rate(self) -> float:
        """Tokens a step, over all prompts."""
        return sum(self.tokens) / max(1, sum(self.steps))

    @property
    def overhead(self) -> float:
        """Median step time with the tree, divided by that of plain decoding."""
        return self.step_seconds / self.plain_step_seconds

    @property
    def speedup(self) -> float:
        """Plain decoding's time for all prompts, divided by the tree's."""
        return sum(self.plain_seconds) / sum(self.seconds)


def measure_tree(
    model: TreeModel,
    prompts: PromptIds,
    tree: CandidateTree,
    arguments: dict[str, Any],
    finished: Callable[[int], None] = lambda prompts: None,
) -> TreeMeasurement:
    """Decode each prompt with the tree and plainly, interleaved.

    Prompts whose answer ends at its first token are left out. The first prompt is decoded once more
    before the others, to warm up.

    Args:
        arguments: keyword arguments of `generate`, acceptance policy included.
        finished: called with the number of prompts measured since the last call.

    Raises:
        ValueError: all answers end at their first token.
    """
    measured: list[dict[str, DecodingStats]] = []
    for number, prompt in enumerate([prompts[0], *prompts]):
        calls = {
            name: partial(_seeded_stats, model, prompt, used, arguments, number)
            for name, used in {"tree": tree, "plain": PLAIN}.items()
        }
        runs = {name: stats for name, (stats,) in interleaved(calls, 1, first=number).items()}
        if number and all(stats.steps for stats in runs.values()):
            measured.append(runs)
            finished(1)
    if not measured:
        raise ValueError(
            "the model's answers to the prompts end at their first token: nothing to measure"
        )
    return _summarised([each["tree"] for each in measured], [each["plain"] for each in measured])


def _seeded_stats(
    model: TreeModel,
    prompt: Sequence[int],
    tree: CandidateTree,
    arguments: dict[str, Any],
    seed: int,
) -> DecodingStats:
    torch.manual_seed(seed)
    return decode_batch(model, [prompt], tree=tree, **arguments).stats


def _summarised(
    with_tree: Sequence[DecodingStats], plain: Sequence[DecodingStats]
) -> TreeMeasurement:
    """Return the measurement of the same prompts decoded with a tree and plainly."""
    return TreeMeasurement(
        [stats.tokens for stats in with_tree],
        [stats.steps for stats in with_tree],
        [stats.decoding_seconds for stats in with_tree],
        [
            # sampled answers may differ in length: compare the time for the same number of tokens
            alone.decoding_seconds / alone.tokens * stats.tokens
            for stats, alone in zip(with_tree, plain, strict=True)
        ],
        statistics.median(seconds for stats in with_tree for seconds in stats.step_seconds),
        statistics.median(seconds for stats in plain for seconds in stats.step_seconds),
    )
