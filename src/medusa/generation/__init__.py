"""`generate` as transformers users know it, over the engine: configuration, batches, streaming."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from ..core.acceptance import AcceptancePolicy
from ..core.engine import PLAIN, Engine
from ..core.model import TreeModel
from ..core.processing import TreeProcessors, copied_processors
from ..core.request import DecodingStats, Event, Request, Row
from ..core.schedule import AdaptiveTree, FixedTree, TreeSchedule
from ..core.tree import CandidateTree
from .custom import requests_of_batch
from .inputs import read_input_ids, read_prompts, setting
from .options import choose_policy, refuse_arguments
from .outputs import Kept, MedusaGenerateOutput, logits_wanted, padded, padding_token
from .preparing import Prepared, prepare_rows
from .stopping import Stop, end_of_positions


@dataclass
class Session:
    """The requests of one call, ready to decode. Iterate it to decode them, step by step.

    A streamer, if there is one, gets the prompt and then every token, as from transformers.

    Attributes:
        requests: one for each sequence.
        config: the first request's complete generation configuration.
        inputs: [B, P] the prompts as they were passed, one row for each sequence.
        rows: the requests under way, once iteration has begun.
        stats: tokens, steps and times so far.
    """

    model: TreeModel
    requests: list[Request]
    config: GenerationConfig
    inputs: Tensor
    streamer: BaseStreamer | None = None
    rows: list[Row] = field(default_factory=list)
    stats: DecodingStats = field(default_factory=DecodingStats)

    def __iter__(self) -> Iterator[list[Event]]:
        """Yield the events of each step; the prefill's single tokens come first.

        A step that runs a part of a long prompt has no events.

        Raises:
            Exception: raised by a logits processor, a stopping criterion or the streamer.
            RuntimeError: no token can be sampled.
        """
        engine, self.stats = Engine(self.model, max_rows=len(self.requests)), DecodingStats()
        self.rows = [engine.submit(request) for request in self.requests]
        try:
            if self.streamer is not None:
                self.streamer.put(torch.tensor([self.rows[0].ids]))
            while not engine.idle:
                events = engine.step()
                self.stats.count(events)
                for event in events:
                    if event.error is not None:
                        raise event.error
                    self._stream(event.tokens)
                yield events
            if self.streamer is not None:
                self.streamer.end()
        finally:
            engine.close()

    def events(self) -> Iterator[Event]:
        """Yield what a single sequence got from each step."""
        for events in self:
            yield from events  # none while a long prompt is prefilled in chunks

    def _stream(self, tokens: Sequence[int]) -> None:
        if self.streamer is not None:
            for token in tokens:
                self.streamer.put(torch.tensor([token]))


def prepare(
    model: TreeModel,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    acceptance: str | AcceptancePolicy = "auto",
    tree: CandidateTree | TreeSchedule | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    attention_mask: Tensor | None = None,
    streamer: BaseStreamer | None = None,
    within_positions: bool = False,
    **kwargs: Any,
) -> Session:
    """Check a call and make its requests; the arguments are those of `GeneratingModel.generate`."""
    inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
    refuse_arguments(kwargs, generation_config)
    inputs = read_input_ids(model, inputs, generation_config, kwargs)
    prompts = read_prompts(model, inputs, attention_mask, generation_config, kwargs)
    prepared = prepare_rows(model.base, prompts, generation_config, kwargs)
    config = prepared[0][2]
    copies = config.num_return_sequences or 1
    if streamer is not None and copies * len(prompts) > 1:
        raise ValueError(
            "a streamer follows one sequence: pass a batch of one, or iterate model.steps(...)"
        )
    temperature = setting("temperature", generation_config, GenerationConfig(), kwargs)
    policy = choose_policy(acceptance, config, temperature)
    requests = _requests(model, prompts, prepared, copies, within_positions)
    requests = _completed(model, requests, config, policy, tree, generator)
    return Session(model, requests, config, inputs.repeat_interleave(copies, 0), streamer)


def prepare_batch(
    model: TreeModel,
    inputs: Tensor,
    generation_config: GenerationConfig,
    *,
    acceptance: str | AcceptancePolicy = "auto",
    tree: CandidateTree | TreeSchedule | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    **kwargs: Any,
) -> Session:
    """Make the requests of a call that transformers has prepared.

    See `GeneratingModel.custom_generate`; the other arguments are those of `requests_of_batch`.
    """
    inputs, policy = inputs.to(model.device), choose_policy(acceptance, generation_config)
    requests = requests_of_batch(model, inputs, generation_config, **kwargs)
    requests = _completed(model, requests, generation_config, policy, tree, generator)
    return Session(model, requests, generation_config, inputs)


def finished(session: Session) -> Tensor | MedusaGenerateOutput:
    """Decode the requests of a session to their ends; return what `generate` returns."""
    kept = Kept(padding_token(session.config))
    for events in session:
        kept.add(events)
    new = [row.ids[len(row.request.ids) :] for row in session.rows]
    sequences = padded(session.inputs, new, kept.pad)
    if not session.config.return_dict_in_generate:
        return sequences
    return MedusaGenerateOutput(
        sequences=sequences,
        scores=kept.by_position(kept.scores),
        logits=kept.by_position(kept.logits),
        stats=session.stats,
        finish_reasons=[row.finish_reason for row in session.rows],
    )


def _requests(
    model: TreeModel,
    prompts: Sequence[Tensor],
    prepared: Sequence[Prepared],
    copies: int,
    within_positions: bool,
) -> list[Request]:
    """Return the requests, `copies` for each prompt, within the model's positions."""
    requests = []
    for prompt, (processors, criteria, config) in zip(prompts, prepared, strict=True):
        ids, longest = prompt.tolist(), math.ceil(config.max_length)
        end = end_of_positions(model.positions, len(ids), within_positions)
        for number in range(copies):
            own = copied_processors(processors) if number else processors
            stop = Stop(criteria, model.device, end, must_stop_before=not within_positions)
            most = longest if end is None else min(longest, end)
            model.positions.check(len(ids), most)
            requests.append(Request(ids, most, stop, own))
    return requests


def _with_schedules(
    model: TreeModel,
    requests: list[Request],
    tree: CandidateTree | TreeSchedule | None,
    config: GenerationConfig,
) -> list[Request]:
    """Set the schedule of each request: the given tree, or the model's while it pays.

    Rows that sample have schedules of their own, so that what one row accepts does not change
    another row's text.
    """
    schedule: TreeSchedule
    if tree is None:
        history = None if config.do_sample else model.history
        schedule = AdaptiveTree(model.tree, model.calibration, history)
    else:
        schedule = FixedTree(tree) if isinstance(tree, CandidateTree) else tree
    schedule.largest.check_heads(model.heads.config.num_heads, model.heads.config.choices)
    reasons = (TreeProcessors(request.processors).unforked() for request in requests)
    unforked = next(filter(None, reasons), None)
    if schedule.largest.max_depth and unforked is not None:
        shared = ", and rows share what cannot be copied" if len(requests) > 1 else ""
        message = f"{unforked}: decoding plainly, one token a step{shared}"
        warnings.warn(message, stacklevel=5)
        schedule = FixedTree(PLAIN)
    if isinstance(schedule, AdaptiveTree) and config.do_sample:
        return [replace(request, schedule=schedule.fork()) for request in requests]
    return [replace(request, schedule=schedule) for request in requests]


def _completed(
    model: TreeModel,
    requests: list[Request],
    config: GenerationConfig,
    policy: AcceptancePolicy,
    tree: CandidateTree | TreeSchedule | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> list[Request]:
    """Add policy, wanted logits, random generators and schedules to the requests of a call."""
    wanted = logits_wanted(config)
    requests = [replace(request, policy=policy, **wanted) for request in requests]
    if config.do_sample:
        requests = _with_generators(requests, generator, model.device)
    return _with_schedules(model, requests, tree, config)


def _with_generators(
    requests: list[Request],
    given: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device,
) -> list[Request]:
    """Set the random generator of each request."""
    generators = _generators(given, len(requests), device)
    return [
        replace(request, generator=own) for request, own in zip(requests, generators, strict=True)
    ]


def _generators(
    given: torch.Generator | Sequence[torch.Generator] | None, rows: int, device: torch.device
) -> Sequence[torch.Generator]:
    """Return one generator a row, seeded from the one given or from torch's global one."""
    if given is None or isinstance(given, torch.Generator):
        place = given.device if given is not None else None
        seeds = torch.randint(2**62, (rows,), generator=given, device=place)
        return [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]
    if len(given) != rows:
        raise ValueError(f"one generator a sequence is needed: {rows}, got {len(given)}")
    return [
        each if each.device.type == device.type else _generators(each, 1, device)[0]
        for each in given
    ]
