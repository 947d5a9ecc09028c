"""What `generate` and `chat` share: a prompt becomes token ids, and steps become text as they
come.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import typer
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..core.engine import PLAIN
from ..core.request import DecodingStats
from ..generation import Session
from ..loading import MedusaModel


@dataclass
class Sampling:
    """How answers are decoded, as the command line has it; `arguments` are those of
    `MedusaModel.steps`.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    acceptance: str = "auto"
    seed: int | None = None
    plain: bool = False

    def __post_init__(self) -> None:
        self.generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of a request."""
        given = (
            {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
            if self.temperature
            else {}
        )
        return {
            "do_sample": self.temperature > 0,
            "acceptance": self.acceptance,
            "generator": self.generator,
            "tree": PLAIN if self.plain else None,
            **{name: value for name, value in given.items() if value is not None},
        }


class Detokenizer:
    """Text from tokens as they come: what is new, with only the last pieces decoded again.

    Characters that tokens share wait until they are whole; the pieces and `flush` make up the
    decoded whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.shown = 0

    def push(self, tokens: Sequence[int]) -> str:
        """Take tokens; returns the text they complete."""
        self.ids += tokens
        text = self._decode(self.ids)
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._new(text)

    def flush(self) -> str:
        """The text that still waited."""
        return self._new(self._decode(self.ids))

    def _new(self, text: str) -> str:
        new = text[len(self._decode(self.ids[: self.shown])) :]
        if new:
            self.ids = self.ids[self.shown :]
            self.shown = len(self.ids)
        return new

    def _decode(self, ids: list[int]) -> str:
        return str(
            self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> Tensor:
    """Token ids [1, P] of a conversation that the model is to answer.

    Raises:
        ValueError: the chat template refuses the conversation.
    """
    try:
        return tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )["input_ids"]
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses the conversation: {error}") from error


def room(model: MedusaModel, prompt: int) -> int | None:
    """Return the most new tokens that fit after a prompt of so many; None where the model names no
    limit.
    """
    longest = model.positions.longest(prompt)
    return None if longest is None else max(0, longest - prompt)


def start(
    model: MedusaModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor, sampling: Sampling
) -> Session:
    """Return a request made ready: no longer than the model can hold, with the model's own stop
    strings.

    Raises:
        ValueError: the prompt is empty or leaves no room for an answer.
    """
    if ids.shape[1] == 0:
        raise ValueError("the prompt is empty: write something to answer")
    return model.steps(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=sampling.max_new_tokens,
        within_positions=True,
        tokenizer=tokenizer,
        **sampling.arguments(),
    )


def pieces(session: Session, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, bool]]:
    """The answer's text as it comes, each piece with whether it came on top of the base model's own
    token.
    """
    detokenizer = Detokenizer(tokenizer)
    for (event,) in session:
        if len(event.tokens) > 1:
            yield detokenizer.push(event.tokens[:-1]), True
        yield detokenizer.push(event.tokens[-1:]), False
    yield detokenizer.flush(), False


def show(text: str, accepted: bool) -> None:
    """Write a piece to stdout at once; accepted candidates are green on a terminal."""
    coloured = text and accepted and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    sys.stdout.write(typer.style(text, fg="green") if coloured else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Write what is not the answer to stderr, dim on a terminal."""
    dim = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    typer.echo(typer.style(text, dim=True) if dim else text, err=True)


def summary(stats: DecodingStats) -> str:
    """A run in one line; the prefill's token counts, its time does not."""
    figures = [f"{stats.tokens + 1} tokens", f"{stats.steps} steps"]
    if stats.steps:
        figures.append(f"{stats.acceleration_rate:.2f} tokens per step")
        figures.append(f"{stats.tokens / stats.decoding_seconds:.1f} tokens/s")
    return ", ".join(figures)
