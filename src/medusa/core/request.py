"""Requests, the rows that decode them, and the events that each step produces."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .acceptance import AcceptancePolicy, Greedy
from .processing import TreeProcessors
from .schedule import TreeSchedule
from .tree import CandidateTree

FinishReason = Literal["stop", "length", "stop_string", "cancelled", "error"]
"""Why a text ended: an end token or a criterion, its limit, a stop string, or `Engine.cancel`.
"error" stands for an exception in its processors or stop rule, or if no token can be sampled."""
StopRule = Callable[[list[int]], FinishReason | None]
"""Function of a text's token ids, called after each new token; returns a reason to end, or None."""


@dataclass(frozen=True)
class Request:
    """A text to continue.

    Attributes:
        ids: token ids of the prompt, at least one.
        max_length: tokens that the text may have, the prompt's included.
        stop: rule that ends the text before that length.
        processors: logits processors, in the order transformers applies them. They may remember
            earlier calls, so no other request may use them.
        policy: acceptance policy. Rows whose policies are equal are judged together.
        schedule: chooses the tree of each step; None is the model's own adaptive one. Requests may
            share a schedule.
        generator: source of randomness, on the model's device; None draws from torch's global one.
        logprobs: report the log-probability of each token and of so many most probable ones, under
            the base model's own distribution; None reports nothing.
        scores: report the processed logits that each token was chosen from.
        logits: report the base model's own logits at each token's place.
        candidates: report the tree that each step verified, its tokens and the accepted ones.
    """

    ids: Sequence[int]
    max_length: int
    stop: StopRule = lambda ids: None
    processors: Sequence[LogitsProcessor] = ()
    policy: AcceptancePolicy = field(default_factory=Greedy)
    schedule: TreeSchedule | None = None
    generator: torch.Generator | None = None
    logprobs: int | None = None
    scores: bool = False
    logits: bool = False
    candidates: bool = False

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError("a request needs at least one token: ids is empty")
        if self.max_length <= len(self.ids):
            raise ValueError(
                f"max_length is {self.max_length} and the prompt has {len(self.ids)} tokens: "
                "it leaves no room for a new one"
            )


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability of a token, and the most probable tokens in its place.

    Attributes:
        token: the delivered token.
        logprob: its natural log-probability.
        top: (token, log-probability) of the most probable tokens, in order.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Candidates:
    """The tree that a step verified for a request.

    Attributes:
        tree: its nodes; node 0 is the root, which the step before delivered.
        tokens: [N] token of each node.
        path: accepted nodes from the root down, those past the end of the text excluded; empty if
            the request's processors failed.
    """

    tree: CandidateTree
    tokens: list[int]
    path: list[int]


@dataclass(frozen=True)
class StepTiming:
    """Duration of a step.

    Attributes:
        nodes: nodes verified in each row, the root included; 1 is plain decoding, 0 a prefill.
        seconds: duration of the step, or of the whole prefill.
        phases: seconds of the phases heads, draft, verify, accept and keep. On a GPU these are
            times of the host, which waits for the device in accept.
    """

    nodes: int
    seconds: float
    phases: Mapping[str, float] = field(default_factory=dict)


@dataclass
class DecodingStats:
    """Tokens, steps and times of one or more requests, in the terms of the paper's appendix B.1.

    Attributes:
        steps: decoding steps after the prefill.
        tokens: tokens delivered after the prefill, over all rows.
        accepted: accepted[n] counts the times a row got n tokens from a step.
        prefill_seconds: time from the begin of the prefill to the first token.
        step_seconds: duration of each step.
        step_nodes: nodes verified in each step; 1 where it decoded plainly.
        phases: seconds of each step's phases.
    """

    steps: int = 0
    tokens: int = 0
    accepted: Counter[int] = field(default_factory=Counter)
    prefill_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    step_nodes: list[int] = field(default_factory=list)
    phases: list[Mapping[str, float]] = field(default_factory=list)

    def count(self, events: Sequence[Event]) -> None:
        """Take the events of one `Engine.step` into account."""
        steps = {id(event.timing): event.timing for event in events if event.timing is not None}
        for timing in steps.values():
            if not timing.nodes:
                self.prefill_seconds += timing.seconds
                continue
            self.steps += 1
            self.step_nodes.append(timing.nodes)
            self.step_seconds.append(timing.seconds)
            self.phases.append(timing.phases)
        counts = [len(each.tokens) for each in events if each.timing and each.timing.nodes]
        self.tokens += sum(counts)
        self.accepted.update(count for count in counts if count)

    @property
    def acceleration_rate(self) -> float:
        """Tokens delivered after the prefill per decoding step of a row; 1 for plain decoding."""
        return self.tokens / max(1, self.accepted.total())

    @property
    def decoding_seconds(self) -> float:
        """Time of all steps, the prefill excluded."""
        return sum(self.step_seconds)


@dataclass(eq=False)
class Row:
    """A request under way.

    Attributes:
        number: identifies the request in its engine.
        schedule: chooses the trees of the request.
        ids: token ids of the prompt and of what has been delivered.
        processors: the request's logits processors, as they are after the text so far.
        hidden: [H] the base model's hidden state after the text so far, without its last token.
        finish_reason: why the text ended; None before it has.
        error: the exception that ended the text.
        stats: steps, tokens and times of this request; its steps are shared with other rows.
        waited: seconds from `Engine.submit` to the begin of the prefill; None before.
        cached: tokens of the prompt whose states were taken from earlier texts.
        weights: execution state of the model at the prefill, if the states may be reused.
    """

    number: int
    request: Request
    schedule: TreeSchedule
    ids: list[int] = field(init=False)
    processors: TreeProcessors = field(init=False)
    hidden: Tensor | None = None
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    stats: DecodingStats = field(default_factory=DecodingStats)
    submitted: float = field(default_factory=time.perf_counter)
    waited: float | None = None
    cached: int = 0
    weights: Any = None

    def __post_init__(self) -> None:
        self.ids = list(self.request.ids)
        self.processors = TreeProcessors(self.request.processors)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def waits(self) -> bool:
        """True if the request still waits for its first token."""
        return self.hidden is None and not self.finished

    def fail(self, error: Exception) -> None:
        """End the text because of an exception."""
        self.finish_reason, self.error = "error", error

    def take(self, tokens: Sequence[int]) -> list[int]:
        """Append tokens one by one up to where the text ends; return those appended."""
        before = len(self.ids)
        try:
            for token in tokens:
                if token < 0:
                    raise RuntimeError(
                        "no token can be sampled: the logits hold NaN or infinity, or a processor "
                        "excluded every token"
                    )
                self.ids.append(token)
                self.finish_reason = self.request.stop(self.ids)
                if self.finish_reason is None and len(self.ids) >= self.request.max_length:
                    self.finish_reason = "length"
                if self.finished:
                    break
        except Exception as error:  # a stop rule may raise anything
            self.fail(error)
        return self.ids[before:]

    def saved(self) -> tuple[Any, ...]:
        """Return the part of the row's state that a step changes, for `restore`."""
        return len(self.ids), self.processors.saved(), self.hidden, self.finish_reason, self.error

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Undo all changes since `saved`."""
        length, processors, self.hidden, self.finish_reason, self.error = saved
        del self.ids[length:]
        self.processors.restore(processors)


@dataclass(frozen=True)
class Event:
    """The result of a step for one request.

    Attributes:
        row: the request under way.
        tokens: new token ids, in order.
        finish_reason: why the text ended with these tokens; None where it goes on.
        logprobs: log-probabilities of each token, if the request wants them.
        timing: duration of the step; None where the request was cancelled.
        scores: [n, V] float32 logits after the processors, at each token's place, if the request
            wants them.
        logits: [n, V] float32 logits before the processors, likewise.
        candidates: the verified tree, if the request wants it; None for its prefill.
        nodes: nodes of the tree that was verified for the request, with the root; 0 for a prefill.
        accepted: number of the tokens that are accepted candidates. The one after them is the base
            model's own, unless the text ended before it.
    """

    row: Row
    tokens: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] | None = None
    timing: StepTiming | None = None
    scores: Tensor | None = None
    logits: Tensor | None = None
    candidates: Candidates | None = None
    nodes: int = 0
    accepted: int = 0

    @property
    def request(self) -> int:
        """The number that `Engine.submit` gave the request."""
        return self.row.number

    @property
    def error(self) -> Exception | None:
        """The exception that ended the text, if its finish reason is "error"."""
        return self.row.error if self.finish_reason == "error" else None
