"""Processors, stopping criteria and configuration of each prompt, prepared by transformers.

They come from transformers' public `custom_generate`, which is called once for each row as if the
row were alone. The text of a row therefore never depends on other rows.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation import StopStringCriteria

from ..core.processing import copied_processors
from ..runtime.modes import ModesKept
from .inputs import setting
from .options import refuse_inputs, refuse_options

Prepared = tuple[LogitsProcessorList, StoppingCriteriaList, GenerationConfig]
"""A row's processors, stopping criteria and complete configuration."""


def prepare_rows(
    base: PreTrainedModel,
    prompts: list[Tensor],
    config: GenerationConfig | None,
    kwargs: dict[str, Any],
) -> list[Prepared]:
    """Return the processors, criteria and configuration of each prompt, as if it were alone.

    Raises:
        ValueError: the call holds an option or an input that decoding with heads does not support.
    """
    base, config, kwargs = _stop_strings_as_criterion(base, config, kwargs)
    with ModesKept():  # transformers turns gradients off meanwhile
        return [
            _prepare_row(base, prompt, config, _arguments_of_row(kwargs, number))
            for number, prompt in enumerate(prompts)
        ]


def _stop_strings_as_criterion(
    base: PreTrainedModel, config: GenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, GenerationConfig | None, dict[str, Any]]:
    """Move stop strings to the stopping criteria.

    transformers needs the tokenizer for stop strings, and does not pass it on beside
    `custom_generate`. Where the base model's own configuration names stop strings, a shallow copy
    of the model without them stands in for it.
    """
    strings = setting("stop_strings", config, base.generation_config, kwargs)
    if not strings:
        return base, config, kwargs
    if kwargs.get("tokenizer") is None:
        raise ValueError(
            "stop_strings are compared with decoded text: pass tokenizer=... to generate as well"
        )
    base, config = copy.copy(base), copy.copy(config)
    base.generation_config = copy.copy(base.generation_config)
    for each in (base.generation_config, config):
        if each is not None:
            each.stop_strings = None
    criteria = [
        *(kwargs.get("stopping_criteria") or ()),
        StopStringCriteria(kwargs["tokenizer"], strings),
    ]
    kept = {
        name: value for name, value in kwargs.items() if name not in ("stop_strings", "tokenizer")
    }
    return base, config, {**kept, "stopping_criteria": StoppingCriteriaList(criteria)}


def _prepare_row(
    base: PreTrainedModel, prompt: Tensor, config: GenerationConfig | None, kwargs: dict[str, Any]
) -> Prepared:
    def captured(_model: Any, input_ids: Tensor, **prepared: Any) -> Prepared:
        refuse_inputs(base, kwargs)
        refuse_options(prepared["generation_config"])
        return (
            prepared["logits_processor"],
            prepared["stopping_criteria"],
            prepared["generation_config"],
        )

    return base.generate(
        prompt[None],
        config,
        attention_mask=torch.ones_like(prompt)[None],
        custom_generate=captured,
        **kwargs,
    )


def _arguments_of_row(kwargs: dict[str, Any], number: int) -> dict[str, Any]:
    """Return the call's arguments for one of its prompts.

    The row gets its own copy of processors that have a memory, and its own number where
    `prefix_allowed_tokens_fn(row, ids)` expects one.
    """
    own = dict(kwargs)
    processors, allowed = kwargs.get("logits_processor"), kwargs.get("prefix_allowed_tokens_fn")
    if processors is not None:
        own["logits_processor"] = LogitsProcessorList(copied_processors(processors))
    if allowed is not None:
        own["prefix_allowed_tokens_fn"] = lambda _, ids: allowed(number, ids)
    return own
