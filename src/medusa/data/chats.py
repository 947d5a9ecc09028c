"""Chats to token ids, with labels for what is learnt of them: the assistant's turns, nothing
else.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..text import encode_chat
from .fields import Messages
from .template import ChatTemplate, Span, Tools, choose_template, shown
from .tokens import Tokenised, Tokens

IGNORED = -100
"""The label of a token that is read and not learnt, as in transformers."""


@dataclass(frozen=True)
class Example:
    """A text to learn from.

    Attributes:
        ids: token ids.
        labels: the same ids, `IGNORED` (-100) where a token is only read.

    Raises:
        ValueError: there are more or fewer labels than ids.
    """

    ids: list[int]
    labels: list[int]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.labels):
            raise ValueError(
                f"as many labels as ids are needed, got {len(self.labels)} and {len(self.ids)}"
            )

    @classmethod
    def answered(cls, prompt: Sequence[int], answer: Sequence[int]) -> Example:
        """A prompt that is read and an answer that is learnt."""
        return cls([*prompt, *answer], [IGNORED] * len(prompt) + [*answer])

    def cut(self, length: int) -> Example:
        """The first `length` tokens."""
        return self if len(self.ids) <= length else Example(self.ids[:length], self.labels[:length])

    @property
    def learnt(self) -> int:
        """How many tokens are learnt; the first of a text, which nothing predicts, never is."""
        return sum(label != IGNORED for label in self.labels[1:])


class Encoder:
    """Turns chats and texts into examples, in a tokenizer's chat template.

    Args:
        tokenizer: a fast one, because tokens must tell which characters they stand for.
        template: a chat template in place of the tokenizer's own, or the name of one of several
            that it has.
        max_length: examples longer than this are cut one token behind it, so that `Example.cut` can
            tell; no more text is tokenised than that takes.
        stops: ids that end an answer, besides the tokenizer's end of sequence and what the template
            shows.

    Raises:
        ValueError: the tokenizer is not a fast one, the template cannot be read, or one of several
            must be chosen.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        *,
        max_length: int | None = None,
        stops: Collection[int] = (),
    ):
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} cannot tell which characters a token stands for: use "
                "a model with a "
                "fast tokenizer (tokenizer.json)"
            )
        self.tokenizer, self.stops = tokenizer, stops
        self.template = choose_template(tokenizer, template)
        self._for_tools = template is None
        self._most = None if max_length is None else max_length + 1
        self._tokens = Tokens(tokenizer, self._most)
        self._templates: dict[str, ChatTemplate] = {}
        self._chosen(None)  # a template that cannot be read is found here

    def __call__(self, chat: Messages | str, tools: Tools = None) -> Example:
        """Return token ids, and labels for the assistant's turns with what ends each, or for the
        whole of a text.

        Behind a turn that is marked as cut no end is learnt; the example ends with it.

        Args:
            tools: JSON schemas of the tools that the chat may call.

        Raises:
            ValueError: the chat has no assistant's turn, or the template does not take it.
        """
        example = self._encoded(chat, tools)
        return example if self._most is None else example.cut(self._most)

    def _encoded(self, chat: Messages | str, tools: Tools) -> Example:
        if isinstance(chat, str):
            told = self._tokens.of(chat)
            ids = self._tokens.begun(told.ids)
            ids = self._tokens.ended(self._tokens.closed(ids)) if told.whole else ids
            return Example(ids, [*ids])
        if not any(turn["role"] == "assistant" for turn in chat):
            raise ValueError("a chat without an assistant's turn teaches nothing")
        template = self._chosen(tools)
        if template is None:
            return _untemplated(self._tokens, chat, tools)
        text = template.example(chat, tools)
        told = self._tokens.of(text)
        reach = len(text) if told.whole else told.offsets[-1][1]
        return _labelled(text, told, template.spans(chat, text, tools, reach))

    def prompt(self, chat: Messages) -> list[int]:
        """Return token ids of a chat that waits for the assistant's turn."""
        return encode_prompt(self.tokenizer, chat, self.template)

    def _chosen(self, tools: Tools) -> ChatTemplate | None:
        """Return the template for a chat with these tools."""
        text = self.template
        if text is not None and tools and self._for_tools:
            text = choose_template(self.tokenizer, None, tools)
        if text is None:
            return None
        if text not in self._templates:
            self._templates[text] = ChatTemplate(self.tokenizer, text, self.stops)
        return self._templates[text]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, chat: Messages, template: str | None
) -> list[int]:
    """Return token ids of a chat that waits for the assistant's turn.

    Args:
        template: Jinja text; without one the ids are those that an example of the chat begins with.
    """
    if template is None:
        return _untemplated(Tokens(tokenizer), chat, None).ids
    return list(encode_chat(tokenizer, shown(chat), template)[0].tolist())


def _labelled(text: str, told: Tokenised, spans: Iterable[Span]) -> Example:
    """Return an example of which the tokens in the spans are learnt."""
    labels = [IGNORED] * len(told.ids)
    ends = [end for _, end in told.offsets]
    for begin, end in spans:
        for place in range(bisect.bisect_right(ends, begin), len(ends)):
            first, _ = told.offsets[place]
            if first >= end:
                break
            if not text[
                first:begin
            ].strip():  # a token that begins in the prompt is not the model's own
                labels[place] = told.ids[place]
    return Example(told.ids, labels)


def _untemplated(tokens: Tokens, chat: Messages, tools: Tools) -> Example:
    """Return an example without a template, which knows no roles: answers stand right behind what
    they answer.

    An end of sequence follows each answer. A blank line stands between other turns.

    Raises:
        ValueError: the chat calls tools, which only a template can write.
    """
    if tools or any(turn["content"] is None for turn in chat):
        raise ValueError(
            "a chat that calls tools needs a chat template, and this tokenizer has none"
        )
    ids: list[int] = []
    labels: list[int] = []
    for text, turn in _pieces(chat):
        told = tokens.of(text)
        piece = told.ids if labels else tokens.begun(told.ids)
        if told.whole:
            piece = piece if labels else tokens.closed(piece)
            piece = (
                tokens.ended(piece)
                if turn["role"] == "assistant" and not turn.get("cut")
                else [*piece]
            )
        ids += piece
        labels += piece if turn["role"] == "assistant" else [IGNORED] * len(piece)
        if not told.whole or (tokens.most is not None and len(ids) >= tokens.most):
            break
    return Example(ids, labels)


def _pieces(chat: Messages) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each answer, and all that stands before it since the last one, with a turn of that
    kind.
    """
    for answers, turns in itertools.groupby(chat, lambda turn: turn["role"] == "assistant"):
        group = list(turns)
        if answers:
            yield from ((turn["content"], turn) for turn in group)
        else:
            yield "\n\n".join(turn["content"] for turn in group), group[-1]


def digest(examples: Iterable[Example]) -> str:
    """Of all ids and labels, in their order."""
    told = hashlib.sha256()
    for example in examples:
        told.update(repr((example.ids, example.labels)).encode())
    return told.hexdigest()
