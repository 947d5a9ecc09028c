"""The decoding methods that are compared.

On a CPU this library runs packed weights. transformers' methods run as their users run them, and on
the same packed weights too, so that what the heads give and what the kernels give can be told
apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from ..core.engine import PLAIN
from ..loading import MedusaModel


@dataclass(frozen=True)
class Run:
    """One answer by one method.

    Attributes:
        ids: the new tokens.
        steps: decoding steps after the first token.
        prefill_seconds: time to the first token.
        seconds: time from the first token to the end.
        step_seconds: duration of each step, where the method tells.
        model_seconds: how much of the steps the base model's and the heads' forwards took; None
            where it is not known.
    """

    ids: list[int]
    steps: int
    prefill_seconds: float
    seconds: float
    step_seconds: tuple[float, ...] = ()
    model_seconds: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens delivered after the prefill."""
        return len(self.ids) - 1


LOOKUP = 10
"""Tokens that prompt lookup proposes at once: transformers' own suggestion."""

Method = Callable[[MedusaModel, Tensor, dict[str, Any]], Run]
"""Model, prompt ids [1, P] and keyword arguments of `generate` -> the answer and its cost."""


def plain(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    """This library's own decoding, one token a step."""
    return _own(model, prompt, {**arguments, "tree": PLAIN})


def medusa(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    """This library's decoding with the model's heads and tree."""
    return _own(model, prompt, arguments)


def generate(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    """transformers' `generate`, on the base model as transformers loads it."""
    return _transformers(model.base, prompt, arguments)


def prompt_lookup(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    """transformers' assisted decoding with candidates looked up in the prompt."""
    return _transformers(model.base, prompt, {**arguments, "prompt_lookup_num_tokens": LOOKUP})


def generate_packed(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    """transformers' `generate` on this library's packed weights."""
    return _packed(model, prompt, arguments)


def prompt_lookup_packed(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    """transformers' prompt lookup on this library's packed weights."""
    return _packed(model, prompt, {**arguments, "prompt_lookup_num_tokens": LOOKUP})


METHODS: dict[str, Method] = {
    "plain": plain,
    "medusa": medusa,
    "generate": generate,
    "prompt_lookup": prompt_lookup,
    "generate_packed": generate_packed,
    "prompt_lookup_packed": prompt_lookup_packed,
}


def _own(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    session = model.steps(prompt, **arguments)
    with _timed(model) as clock:
        for _ in session:
            if session.stats.steps == 0:
                clock.seconds = 0.0
    stats = session.stats
    return Run(
        session.rows[0].ids[prompt.shape[1] :],
        stats.steps,
        stats.prefill_seconds,
        stats.decoding_seconds,
        tuple(stats.step_seconds),
        None if model.compiled else clock.seconds,
    )


@dataclass
class _ModelClock:
    """Time spent in the forwards of a model's two parts."""

    seconds: float = 0.0
    started: float = 0.0

    def start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self.started


@contextmanager
def _timed(model: MedusaModel) -> Iterator[_ModelClock]:
    """Times the base model's and the heads' forwards while the context lasts; not compiled ones,
    which hooks undo.
    """
    model.refresh()
    clock = _ModelClock()
    handles = []
    for part in () if model.compiled else (model.base, model.heads):
        handles += [
            part.register_forward_pre_hook(clock.start),
            part.register_forward_hook(clock.stop),
        ]
    try:
        yield clock
    finally:
        for handle in handles:
            handle.remove()


class _Clock(StoppingCriteria):
    """Notes when transformers asks whether to stop: once a step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _packed(model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    return _transformers(model.packed_base, prompt, arguments)


def _transformers(model: PreTrainedModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
    clock = _Clock()
    started = time.perf_counter()
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        stopping_criteria=StoppingCriteriaList([clock]),
        **arguments,
    )
    ended = time.perf_counter()
    ids = output[0, prompt.shape[1] :].tolist()
    return Run(ids, len(clock.times) - 1, clock.times[0] - started, ended - clock.times[0])
