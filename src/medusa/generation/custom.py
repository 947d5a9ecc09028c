"""Requests for `base.generate(custom_generate=...)`, which hands over a batch it has prepared.

transformers prepares logits processors and stopping criteria for the padded batch. Each row is
decoded without its padding, but its processors and criteria see the padding, so that they give what
they give in transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from ..core.checks import CACHE_ARGUMENTS
from ..core.forking import fork
from ..core.model import TreeModel
from ..core.processing import PREFIX_FREE, STATELESS, copied_processors
from ..core.request import Request
from .inputs import read_prompts
from .options import ELSEWHERE, refuse_inputs, refuse_options
from .stopping import Stop, end_of_positions

PREPARED = (*CACHE_ARGUMENTS, "position_ids")
"""Inputs that transformers adds to a call."""


@dataclass
class OfRow(LogitsProcessor):
    """A processor of a padded batch, applied to texts of one of its rows.

    Attributes:
        inner: the processor of the batch.
        row: the number of the row in what `inner` gets.
        rows: the rows that `inner` gets; all have the same text.
        padding: [p] tokens before the row's text.
    """

    inner: LogitsProcessor
    row: int
    rows: int
    padding: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        texts = torch.cat([self.padding.expand(len(input_ids), -1), input_ids], 1)
        processed = [
            self.inner(text.expand(self.rows, -1), each.repeat(self.rows, 1))[self.row]
            for text, each in zip(texts, scores, strict=True)
        ]
        return torch.stack(processed)

    def fork(self) -> OfRow:
        """Return a fork; a processor without a memory serves as its own fork."""
        return self if type(self.inner) in STATELESS else replace(self, inner=fork(self.inner))


def requests_of_batch(
    model: TreeModel,
    inputs: Tensor,
    config: GenerationConfig,
    *,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    within_positions: bool,
    **arguments: Any,
) -> list[Request]:
    """Return a request for each row of a prepared batch.

    Args:
        inputs: [B, P] left-padded prompts.
        config, processors, criteria: as transformers prepared them.
        within_positions: end a row where the model's positions end.
        arguments: those of the base model's forward, such as `attention_mask`.

    Raises:
        ValueError: an option or an input is not supported; names the alternative.
    """
    refuse_options(config)
    for name in CACHE_ARGUMENTS:
        if getattr(arguments.get(name), "_is_user_defined", False):
            raise ValueError(f"{name} is not supported with Medusa heads; {ELSEWHERE} for it")
    others = {name: value for name, value in arguments.items() if name not in PREPARED}
    mask = others.pop("attention_mask", None)
    refuse_inputs(model.base, others)
    mask = torch.ones_like(inputs) if mask is None else mask
    positions = {"position_ids": arguments.get("position_ids")}
    prompts = read_prompts(model, inputs, mask, config, positions)
    requests = []
    for row, prompt in enumerate(prompts):
        padding = inputs[row, : inputs.shape[1] - len(prompt)]
        own = copied_processors(processors) if row else processors
        ids, longest = prompt.tolist(), math.ceil(config.max_length) - len(padding)
        end = end_of_positions(model.positions, len(ids), within_positions)
        stop = Stop(criteria, model.device, end, not within_positions, padding.tolist())
        most = longest if end is None else min(longest, end)
        model.positions.check(len(ids), most)
        requests.append(Request(ids, most, stop, _of_row(own, row, len(prompts), padding)))
    return requests


def _of_row(
    processors: LogitsProcessorList, row: int, rows: int, padding: Tensor
) -> LogitsProcessorList:
    """Return the processors of a batch for one of its rows.

    Those of transformers may know a row by its number; others get each row as a batch of its own.
    """
    if rows == 1 and not len(padding):
        return processors
    return LogitsProcessorList(
        each
        if type(each) in PREFIX_FREE
        else OfRow(each, *((row, rows) if type(each) in STATELESS else (0, 1)), padding)
        for each in processors
    )
