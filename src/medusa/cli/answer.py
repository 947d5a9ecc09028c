"""Functions that `generate` and `chat` share: start a request and print its answer."""

from __future__ import annotations

import os
import sys

import torch
import typer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..core.request import DecodingStats
from ..generation import Session
from ..loading import MedusaModel
from .options import AnswerOptions


def tokens_left(model: MedusaModel, prompt: int) -> int | None:
    """Return how many new tokens fit after a prompt of `prompt` tokens; None without a limit."""
    longest = model.positions.longest(prompt)
    return None if longest is None else max(0, longest - prompt)


def start(
    model: MedusaModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor, options: AnswerOptions
) -> Session:
    """Return a session that decodes the answer to a prompt when it is iterated.

    The answer ends at the latest where the model's positions end, and at the model's own stop
    strings.

    Args:
        ids: token ids [1, P] of the prompt.

    Raises:
        ValueError: the prompt is empty or fills the model's positions.
    """
    if ids.shape[1] == 0:
        raise ValueError("the prompt is empty: write something to answer")
    return model.steps(
        ids,
        attention_mask=torch.ones_like(ids),
        within_positions=True,
        tokenizer=tokenizer,
        **options.arguments(),
    )


def show(text: str, accepted: bool) -> None:
    """Write a piece of an answer to stdout at once; accepted candidates are green on a terminal."""
    coloured = text and accepted and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    sys.stdout.write(typer.style(text, fg="green") if coloured else text)
    sys.stdout.flush()


def summary(stats: DecodingStats) -> str:
    """Return a run's tokens, steps and speed in one line.

    The prefill gives the first token, which is counted. The speed is that of the steps alone.
    """
    figures = [f"{stats.tokens + 1} tokens", f"{stats.steps} steps"]
    if stats.steps:
        figures.append(f"{stats.acceleration_rate:.2f} tokens per step")
        figures.append(f"{stats.tokens / stats.decoding_seconds:.1f} tokens/s")
    return ", ".join(figures)
