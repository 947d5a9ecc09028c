"""The decoding methods that are compared.

On a CPU this library runs packed weights. transformers' methods run on the weights as transformers
loads them, which is what their users get, and on the packed weights too, so that the gain of the
heads can be distinguished from the gain of the kernels.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from ..core.engine import PLAIN
from ..loading import MedusaModel


@dataclass(frozen=True)
class Run:
    """One answer by one method, and the time it took.

    Attributes:
        ids: the new tokens; empty for methods that give text alone.
        steps: number of decoding steps after the first token; 0 for methods that do not report it.
        prefill_seconds: time to the first token.
        seconds: time from the first token to the end.
        step_seconds: duration of each step; empty for methods that do not report it.
        phases: the part of `seconds` spent in each phase of a step (see `StepTiming`); empty where
            it was not measured.
        accepted: number of tokens that each step gave; empty for methods that do not report it.
        drafting_steps: number of steps that verified candidates beside the model's own token; None
            for methods that do not report it.
        text: the answer as text; `medusa bench` adds it where a method gives ids.
        counted: number of new tokens where a method gives text alone.
        device_peak_bytes: peak memory allocated on the GPU during the run; None where it was not
            measured.
    """

    ids: list[int]
    steps: int
    prefill_seconds: float
    seconds: float
    step_seconds: tuple[float, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)
    accepted: tuple[int, ...] = ()
    drafting_steps: int | None = None
    text: str = ""
    counted: int = 0
    device_peak_bytes: int | None = None

    @property
    def length(self) -> int:
        """Number of new tokens."""
        return len(self.ids) or self.counted

    @property
    def tokens(self) -> int:
        """Number of tokens after the first."""
        return self.length - 1

    @property
    def model_seconds(self) -> float | None:
        """The part of `seconds` in the forwards of the backbone and the heads, where measured."""
        return self.phases["heads"] + self.phases["verify"] if self.phases else None

    @property
    def total_seconds(self) -> float:
        """Time of the whole answer, prefill included."""
        return self.prefill_seconds + self.seconds


LOOKUP = 10
"""Tokens that prompt lookup proposes at once, as transformers' documentation suggests."""

Method = Callable[[MedusaModel, Tensor, dict[str, Any]], Run]
"""Takes a model, prompt ids [1, P] and keyword arguments of `generate`; returns the run."""


def plain(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    """Decode with this library, one token a step."""
    return _medusa_run(model, prompt, {**arguments, "tree": PLAIN})


def medusa(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    """Decode with this library and the model's heads; `arguments` may name another tree."""
    return _medusa_run(model, prompt, arguments)


def generate(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    """Decode with transformers' `generate`, on the base model as transformers loads it."""
    return transformers_run(model.base, prompt, arguments)


def prompt_lookup(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    """Decode with transformers' assisted decoding, candidates looked up in the prompt."""
    return transformers_run(model.base, prompt, {**arguments, "prompt_lookup_num_tokens": LOOKUP})


def generate_packed(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    """Decode with transformers' `generate` on this library's packed weights."""
    return transformers_run(model.packed_base, prompt, arguments)


def prompt_lookup_packed(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    """Decode with transformers' prompt lookup on this library's packed weights."""
    return transformers_run(
        model.packed_base, prompt, {**arguments, "prompt_lookup_num_tokens": LOOKUP}
    )


METHODS: dict[str, Method] = {
    "plain": plain,
    "medusa": medusa,
    "generate": generate,
    "prompt_lookup": prompt_lookup,
    "generate_packed": generate_packed,
    "prompt_lookup_packed": prompt_lookup_packed,
}


def _medusa_run(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    session = model.steps(prompt, **arguments)
    counts = [len(event.tokens) for events in session for event in events]
    stats = session.stats
    phases: Counter[str] = Counter()
    for each in stats.phases:
        phases.update(each)
    return Run(
        session.rows[0].ids[prompt.shape[1] :],
        stats.steps,
        stats.prefill_seconds,
        stats.decoding_seconds,
        tuple(stats.step_seconds),
        dict(phases),
        tuple(counts[1:]),  # the first token comes from the prefill
        drafting_steps=sum(nodes > 1 for nodes in stats.step_nodes),
    )


class _StepClock(BaseStreamer):
    """Records the end of each step, and its number of tokens.

    transformers gives a streamer the prompt, and then the tokens of each step.
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, value: Tensor) -> None:
        """Record a step."""
        self.times.append(time.perf_counter())
        self.counts.append(value.numel())

    def end(self) -> None:
        """Do nothing: the last step has been recorded."""


def transformers_run(model: PreTrainedModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    """Decode with transformers' `generate`; the first token's time is that of its first step."""
    clock = _StepClock()
    prompt = prompt.to(model.device)
    started = time.perf_counter()
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        streamer=clock,
        **arguments,
    )
    ended = time.perf_counter()
    ids = output[0, prompt.shape[1] :].tolist()
    _, first, *_ = clock.times
    steps = differences(clock.times[1:])
    accepted = tuple(clock.counts[2:])
    return Run(ids, len(steps), first - started, ended - first, steps, accepted=accepted)


def differences(values: Sequence[float]) -> tuple[float, ...]:
    """Return by how much each value exceeds the one before."""
    return tuple(after - before for before, after in itertools.pairwise(values))
