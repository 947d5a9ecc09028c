"""Answers: what a protocol asks for becomes requests, and their events become text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedTokenizerBase
from transformers.generation import SequenceBiasLogitsProcessor

from ..core.engine import PLAIN
from ..core.processing import copied_processors
from ..core.request import Event, FinishReason, Request, Row, StopRule, TokenLogprobs
from ..core.schedule import FixedTree
from ..generation import prepare
from ..loading import MedusaModel
from ..text import Detokenizer
from .fields import Sampling
from .penalties import CountPenalty
from .settings import ServerSettings
from .stops import Shown, with_stop_strings
from .worker import Events, Worker

LEAST_TEMPERATURE = 1e-5
"""Lower temperatures decode greedily: logits divided by them would overflow."""


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Attributes:
        text: the text that it completes. Where the texts of single tokens are not wanted, the
            first token of a step has the text of all.
        accepted: it is an accepted candidate; otherwise it is the base model's own.
        logprobs: its log-probability, where it was asked for.
    """

    id: int
    text: str
    accepted: bool
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Piece:
    """A part of an answer: the tokens of a step, or one of them.

    Attributes:
        index: number of the answer.
        text: text that may be shown, without what may become a stop string.
        tokens: tokens since the last piece.
        finish_reason: why the answer ends with this piece; None where it goes on.
        event: the step, in the first piece of each step.
    """

    index: int
    text: str
    tokens: Sequence[Token]
    finish_reason: FinishReason | None = None
    event: Event | None = None


@dataclass
class Answer:
    """An answer under way.

    Attributes:
        row: its request in the engine.
        token_by_token: make a piece of each token.
        split: each token needs its own text; to find it takes as long again for each token.
        steps: steps so far, the prefill not counted.
    """

    index: int
    row: Row
    detokenizer: Detokenizer
    shown: Shown
    token_by_token: bool = False
    split: bool = True
    steps: int = 0

    def pieces(self, event: Event) -> list[Piece]:
        """Return the pieces of a step: one, or one for each token."""
        self.steps += bool(event.timing and event.timing.nodes)
        tokens = self._tokens(event)
        parts = [[token] for token in tokens] if self.token_by_token and tokens else [tokens]
        made = [
            Piece(self.index, self.shown.push("".join(each.text for each in part)), part)
            for part in parts
        ]
        made[0] = replace(made[0], event=event)
        if event.finish_reason is not None:
            rest = self.shown.push(self.detokenizer.flush()) + self.shown.flush()
            last = made[-1]
            made[-1] = replace(last, text=last.text + rest, finish_reason=event.finish_reason)
        return made

    def _tokens(self, event: Event) -> list[Token]:
        logprobs: Sequence[TokenLogprobs | None] = event.logprobs or [None] * len(event.tokens)
        each = zip(event.tokens, self._texts(event), logprobs, strict=True)
        return [
            Token(token, text, place < event.accepted, logprob)
            for place, (token, text, logprob) in enumerate(each)
        ]

    def _texts(self, event: Event) -> list[str]:
        """Return the text of each token; a token that ends the answer has none."""
        shown = len(event.tokens) - (event.finish_reason == "stop")
        tokens = event.tokens[:shown]
        if self.split:
            texts = [self.detokenizer.push([each]) for each in tokens]
        else:
            texts = [self.detokenizer.push(tokens), *[""] * (shown - 1)] if tokens else []
        return texts + [""] * (len(event.tokens) - shown)


class AnswerError(RuntimeError):
    """An answer ended because of an error of the model or of a logits processor."""


class Answers:
    """The answers to one call, as they are decoded. Iterate over their pieces.

    Attributes:
        answers: one for each answer asked for.
    """

    def __init__(self, worker: Worker, answers: Mapping[int, Answer], events: Events):
        self._worker, self._events, self._by_row = worker, events, answers
        self.answers = list(answers.values())
        self._open = set(answers)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Yield pieces up to the end of the last answer.

        Raises:
            AnswerError: an answer ended because of an error.
            WorkerError: the server stopped meanwhile.
        """
        while self._open:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            if event.finish_reason is not None:
                self._open.discard(event.request)
            if event.error is not None:
                raise AnswerError(str(event.error) or type(event.error).__name__) from event.error
            for piece in self._by_row[event.request].pieces(event):
                yield piece

    def cancel(self) -> None:
        """End all answers, where their client has gone, say; answers that have ended stay."""
        for answer in self.answers:
            self._worker.cancel(answer.row)


@dataclass
class Answerer:
    """Answers token ids with a model, in the thread of a worker.

    Args:
        worker: steps an engine of the model.
    """

    model: MedusaModel
    tokenizer: PreTrainedTokenizerBase
    worker: Worker
    settings: ServerSettings
    _plain: FixedTree = field(default_factory=lambda: FixedTree(PLAIN))

    @property
    def end_ids(self) -> list[int]:
        """The token ids that end an answer."""
        found = self.model.base.generation_config.eos_token_id
        return [] if found is None else found if isinstance(found, list) else [found]

    @property
    def stop_strings(self) -> list[str]:
        """The texts that end an answer by the model's generation configuration."""
        found = self.model.base.generation_config.stop_strings
        return [] if found is None else [found] if isinstance(found, str) else list(found)

    def answer(
        self,
        ids: Sequence[int],
        wanted: Sampling,
        *,
        processors: Sequence[LogitsProcessor] = (),
        logprobs: int | None = None,
        kept: Sequence[str] = (),
    ) -> Answers:
        """Begin to answer a prompt.

        Args:
            ids: the prompt.
            wanted: limits and sampling.
            processors: further logits processors, such as grammars.
            logprobs: number of most probable tokens to report for each token; None reports none.
            kept: special tokens that are part of the text.

        Raises:
            WorkerError: the server is shutting down, or its engine has failed.
            ValueError: the prompt is too long, or a value does not fit the model.
        """
        events: Events = asyncio.Queue()
        found: dict[int, Answer] = {}
        try:
            for index in range(wanted.count):
                request = self._request(ids, wanted, processors, logprobs, index)
                row = self.worker.submit(request, events)
                found[row.number] = Answer(
                    index,
                    row,
                    Detokenizer(self.tokenizer, kept),
                    Shown([*wanted.stops, *self.stop_strings]),
                    token_by_token=wanted.medusa.stream_token_by_token,
                    split=_needs_texts(wanted, logprobs),
                )
        except Exception:
            Answers(self.worker, found, events).cancel()
            raise
        return Answers(self.worker, found, events)

    def _request(
        self,
        ids: Sequence[int],
        wanted: Sampling,
        processors: Sequence[LogitsProcessor],
        logprobs: int | None,
        index: int,
    ) -> Request:
        """Return the engine's request for one of the answers."""
        self._check(ids, wanted)
        own = [*_penalties(wanted, len(ids)), *copied_processors(processors)]
        inputs = torch.tensor([list(ids)])
        session = prepare(
            self.model,
            inputs,
            generation_config(wanted, self.settings),
            attention_mask=torch.ones_like(inputs),
            logits_processor=own,
            generator=self._generator(wanted.seed, index),
            within_positions=True,
            tokenizer=self.tokenizer,
        )
        request = session.requests[0]
        rule = with_stop_strings(request.stop, self.tokenizer, wanted.stops, len(ids))
        # requests share the engine's schedule; but what a seed gives must not depend on others
        shared = wanted.seed is None or not session.config.do_sample
        schedule = None if shared else request.schedule
        return replace(
            request,
            stop=_within(rule, time.monotonic() + self.settings.max_seconds),
            schedule=schedule if wanted.medusa.enabled else self._plain,
            logprobs=logprobs,
            candidates=wanted.medusa.steps,
        )

    def _check(self, ids: Sequence[int], wanted: Sampling) -> None:
        tokens = self.model.heads.config.vocab_size
        if not 0 <= min(ids) <= max(ids) < tokens:
            raise ValueError(f"prompt: token ids must lie in 0 to {tokens - 1}, the vocabulary")
        if wrong := [each for each in wanted.logit_bias or () if not 0 <= each < tokens]:
            raise ValueError(f"logit_bias: {wrong[0]} is no token of the model; it has {tokens}")
        most = self.settings.max_prompt
        if most is not None and len(ids) > most:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and this server takes {most}: shorten it"
            )

    def _generator(self, seed: int | None, index: int) -> torch.Generator | None:
        if seed is None:
            return None
        return torch.Generator(self.model.device).manual_seed(seed + index)


def generation_config(wanted: Sampling, settings: ServerSettings) -> GenerationConfig:
    """Return the generation configuration of a request; the model's own fills what is left out."""
    given: dict[str, Any] = {"max_new_tokens": wanted.max_tokens or settings.max_new_tokens}
    if wanted.temperature is not None:
        given["do_sample"] = wanted.temperature >= LEAST_TEMPERATURE
        if given["do_sample"]:
            given["temperature"] = wanted.temperature
    if wanted.top_k is not None:
        given["top_k"] = max(wanted.top_k, 0)  # -1 means the same in other servers
    for name in ("top_p", "min_p", "repetition_penalty"):
        if getattr(wanted, name) is not None:
            given[name] = getattr(wanted, name)
    return GenerationConfig(**given)


def _needs_texts(wanted: Sampling, logprobs: int | None) -> bool:
    """Return True if a protocol will report the text of each token."""
    switches = wanted.medusa
    return switches.stream_token_by_token or switches.steps or logprobs is not None


def _penalties(wanted: Sampling, prompt: int) -> list[LogitsProcessor]:
    found: list[LogitsProcessor] = []
    if wanted.presence_penalty or wanted.frequency_penalty:
        presence, frequency = wanted.presence_penalty or 0.0, wanted.frequency_penalty or 0.0
        found.append(CountPenalty(prompt, presence, frequency))
    if wanted.logit_bias:
        biases = {(token,): bias for token, bias in wanted.logit_bias.items()}
        found.append(SequenceBiasLogitsProcessor(biases))
    return found


def _within(rule: StopRule, end: float) -> StopRule:
    """Return a rule that also ends a text at a time of the monotonic clock."""

    def stop(ids: list[int]) -> FinishReason | None:
        return rule(ids) or ("length" if time.monotonic() > end else None)

    return stop
