"""The measurement of `medusa bench`: every question is answered by all methods in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.prompts import encode
from ..data.turns import Messages
from ..hardware.memory import with_device_peak
from ..hardware.timing import interleaved
from ..loading import MedusaModel
from ..training.progress import progress
from .checks import Check
from .methods import Method, Run
from .records import QuestionRecord, RunRecord, TurnRecord, records_file
from .served import ServedModel
from .suites import Question

STALL = 5.0
"""A step that takes longer than so many median steps is stalled."""
LOST = 0.05
"""A run that lost more than this share of its time in stalled steps is measured again."""
TRIES = 3
"""Times that a run is measured at most."""


@dataclass(frozen=True)
class BenchSettings:
    """Settings that all answers of a benchmark share.

    Attributes:
        max_new_tokens: maximum number of tokens of an answer.
        temperature: sampling temperature where the suite prescribes none; 0 decodes greedily.
        rounds: times that each method answers each question.
        seed: seed of the first question; each further question adds 1.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    rounds: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Bench:
    """A model, and the methods that are compared on it.

    Attributes:
        methods: by name. The answers of the first one stand in the prompts of later turns, so that
            all methods continue the same text.
    """

    model: MedusaModel
    tokenizer: PreTrainedTokenizerBase
    methods: Mapping[str, Method | ServedModel]
    settings: BenchSettings

    def answer(self, question: Question, number: int) -> QuestionRecord:
        """Answer a question by all methods, interleaved.

        Args:
            number: of the question; it is added to the seed, and rotates the order of the methods.
        """
        messages, turns = list(question.messages), list[TurnRecord]()
        for further in question.later:
            turn, text = self._turn(question, messages, number)
            turns.append(turn)
            messages.append({"role": "assistant", "content": text})
            messages.append({"role": "user", "content": further})
        turns.append(self._turn(question, messages, number, question.check)[0])
        return QuestionRecord(question=question.id, category=question.category, turns=turns)

    def _turn(
        self, question: Question, messages: Messages, number: int, check: Check | None = None
    ) -> tuple[TurnRecord, str]:
        """Return the record of a turn, and the first method's answer."""
        own = question.temperature
        temperature = self.settings.temperature if own is None else own
        ids = torch.tensor([encode(self.tokenizer, messages)], device=self.model.device)
        runs, again = self._measured(messages, ids, temperature, number)
        texts = {name: rounds[0].text for name, rounds in runs.items()}
        turn = TurnRecord(
            prompt=ids[0].tolist(),
            temperature=temperature,
            runs={name: [RunRecord.of(run) for run in rounds] for name, rounds in runs.items()},
            right={} if check is None else {name: check(text) for name, text in texts.items()},
            measured_again=again,
        )
        return turn, next(iter(texts.values()))

    def _measured(
        self, messages: Messages, ids: Tensor, temperature: float, number: int
    ) -> tuple[dict[str, list[Run]], list[str]]:
        """Return the runs of a prompt by method, and the methods that were measured again.

        A run with stalled steps, as on a machine that something else disturbs, is measured again,
        and the fastest of its runs counts.
        """
        arguments: dict[str, Any] = {
            "max_new_tokens": self.settings.max_new_tokens,
            "do_sample": temperature > 0,
        }
        if temperature > 0:
            arguments["temperature"] = temperature
        seed = self.settings.seed + number
        calls = {
            name: partial(self._run, asked(method, messages, seed), ids, arguments, seed)
            for name, method in self.methods.items()
        }
        runs = interleaved(calls, self.settings.rounds, first=number)
        again = [name for name, rounds in runs.items() if any(map(stalled, rounds))]
        for name in again:
            runs[name] = [calmest(run, calls[name]) for run in runs[name]]
        return runs, again

    def _run(self, method: Method, ids: Tensor, arguments: dict[str, Any], seed: int) -> Run:
        """Return a run with the answer's text, and the GPU's peak memory if there is a GPU."""
        torch.manual_seed(seed)
        call = partial(method, self.model, ids, arguments)
        run, peak = with_device_peak(self.model.device, call)
        if not run.ids:  # a server gives text, and its memory is elsewhere
            return run
        text = self.tokenizer.decode(run.ids, skip_special_tokens=True)
        return replace(run, text=text, device_peak_bytes=peak)


def run_bench(
    bench: Bench,
    questions: Sequence[Question],
    file: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[QuestionRecord]:
    """Return a record of each question; those in a file of records are not answered again.

    The first question that is left is answered once before, as a warm-up that does not count.

    Args:
        file: file of records, which gets the new ones.
        settings: what all its records have in common.
        say: prints a line of progress; by default to standard error.

    Raises:
        ValueError: the file has other settings, or a line in it is broken.
    """
    with ExitStack() as stack:
        kept = None if file is None else stack.enter_context(records_file(file, settings or {}))
        done = {} if kept is None else dict(kept.records)
        left = [(number, each) for number, each in enumerate(questions) if each.id not in done]
        if left:
            bench.answer(left[0][1], left[0][0])
        advance = stack.enter_context(progress("answering", len(left), "questions", say))
        for number, question in left:
            record = bench.answer(question, number)
            done[record.question] = record
            if kept is not None:
                kept.append(record)
            advance(1)
    return [done[question.id] for question in questions]


def asked(method: Method | ServedModel, messages: Messages, seed: int) -> Method:
    """Return a method; that of a server has the messages, which its own chat template writes."""
    return method.asked(messages, seed) if isinstance(method, ServedModel) else method


def stalled(run: Run) -> bool:
    """Return True if a part of a run's time was lost in steps that took far too long."""
    if not run.step_seconds:
        return False
    most = STALL * statistics.median(run.step_seconds)
    return sum(max(0.0, each - most) for each in run.step_seconds) > LOST * run.seconds


def calmest(run: Run, once_more: Callable[[], Run]) -> Run:
    """Return a run, or the fastest of it and further ones if it was stalled."""
    runs = [run]
    while stalled(runs[-1]) and len(runs) < TRIES:
        runs.append(once_more())
    return min(runs, key=lambda each: each.total_seconds)
