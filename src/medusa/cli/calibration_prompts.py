"""The prompts of `medusa calibrate`: some to record the heads on, others to test the tree on."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from .. import demo
from ..calibration.settings import PromptIds
from ..data.prompts import encode, read_prompts
from ..data.turns import Messages
from .calibrate import CalibrationOptions
from .models import DEMO

HELD_OUT = 5
"""One of this many prompts is held out to test the chosen tree."""


def read_messages(options: CalibrationOptions, model: str) -> list[Messages]:
    """Return the messages of each prompt; those of the embedded model's tasks by default.

    Raises:
        ValueError: no source is named, or it holds fewer than two prompts.
    """
    if options.data is None and model != DEMO:
        raise ValueError(
            "which prompts will the model serve? name some with --data FILE (or a dataset, "
            "owner/name)"
        )
    if options.data is None:
        return [
            [{"role": "user", "content": task.prompt}]
            for task in demo.calibration_tasks(options.prompts)
        ]
    messages = read_prompts(options.data)[: options.prompts]
    if len(messages) < 2:
        raise ValueError(
            f"{options.data} holds one prompt: calibration needs some to record and others to try "
            "the tree on"
        )
    return messages


def split(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]
) -> tuple[PromptIds, PromptIds]:
    """Return token ids of the prompts to record, and of those held out."""
    ids = [encode(tokenizer, messages) for messages in prompts]
    every = min(HELD_OUT, len(ids))
    recorded = [prompt for place, prompt in enumerate(ids) if place % every]
    return recorded, ids[::every]
