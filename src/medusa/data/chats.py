"""Encoding of chats as token ids, with labels for the tokens to train on: the assistant's turns."""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..text import encode_chat
from .template import ChatTemplate, Span, Tools, choose_template, visible
from .tokens import PrefixTokenizer, Tokenised
from .turns import Messages

IGNORED = -100
"""Label of a token that is context only and not trained on, as in transformers."""


@dataclass(frozen=True)
class Example:
    """A text to train on.

    Attributes:
        ids: token ids.
        labels: the same ids, with `IGNORED` (-100) for tokens that are context only.

    Raises:
        ValueError: `ids` and `labels` differ in length.
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
        """Return an example that trains on the answer and has the prompt as context."""
        return cls([*prompt, *answer], [IGNORED] * len(prompt) + [*answer])

    def cut(self, length: int) -> Example:
        """Return an example of the first `length` tokens."""
        return self if len(self.ids) <= length else Example(self.ids[:length], self.labels[:length])

    @property
    def learnt(self) -> int:
        """Number of tokens to train on. The first token never counts: nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


class Encoder:
    """An encoder of chats and texts as examples, by a tokenizer's chat template.

    Args:
        tokenizer: a fast tokenizer, because the characters of each token must be known.
        template: a chat template to use instead of the tokenizer's own, or the name of one of its
            several templates.
        max_length: longer examples are truncated to `max_length + 1` tokens: the extra token shows
            that the example was longer. Only the text that this takes is tokenised.
        stops: token ids that end an answer, besides the EOS token and what the template writes.

    Raises:
        ValueError: the tokenizer is not a fast one, the template is not valid Jinja, or the
            tokenizer has several templates and none is chosen.
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
                "a model with a fast tokenizer (tokenizer.json)"
            )
        self.tokenizer, self.stops = tokenizer, stops
        self.template = choose_template(tokenizer, template)
        self._use_tool_template = template is None
        self._max_tokens = None if max_length is None else max_length + 1
        self._tokens = PrefixTokenizer(tokenizer, self._max_tokens)
        self._templates: dict[str, ChatTemplate] = {}
        self._template_for(None)  # raises now if the template is not valid Jinja

    def __call__(self, chat: Messages | str, tools: Tools = None) -> Example:
        """Return the example of a chat or a text.

        Of a chat the assistant's turns are trained on, each with the mark that ends it; of a text
        everything is. An answer that is marked as cut has no end to train on, and ends the example.

        Args:
            chat: a chat, or a text.
            tools: JSON schemas of the tools that the chat may call.

        Raises:
            ValueError: the chat has no turn of the assistant, or the template refuses it.
        """
        example = self._encode(chat, tools)
        return example if self._max_tokens is None else example.cut(self._max_tokens)

    def _encode(self, chat: Messages | str, tools: Tools) -> Example:
        if isinstance(chat, str):
            return self._encode_text(chat)
        if not any(turn["role"] == "assistant" for turn in chat):
            raise ValueError("a chat without an assistant's turn has nothing to train on")
        template = self._template_for(tools)
        if template is None:
            return _encode_untemplated(self._tokens, chat, tools)
        text = template.training_text(chat, tools)
        tokenised = self._tokens.tokenise(text)
        reach = len(text) if tokenised.complete else tokenised.offsets[-1][1]
        return _labelled(text, tokenised, template.spans(chat, text, tools, reach))

    def _encode_text(self, text: str) -> Example:
        tokenised = self._tokens.tokenise(text)
        ids = self._tokens.add_prefix(tokenised.ids)
        if tokenised.complete:
            ids = self._tokens.add_eos(self._tokens.add_suffix(ids))
        return Example(ids, [*ids])

    def prompt(self, chat: Messages) -> list[int]:
        """Return the token ids of a chat up to where the assistant's next turn begins."""
        return encode_prompt(self.tokenizer, chat, self.template)

    def _template_for(self, tools: Tools) -> ChatTemplate | None:
        """Return the template for a chat with these tools; None if the tokenizer has none."""
        text = self.template
        if text is not None and tools and self._use_tool_template:
            text = choose_template(self.tokenizer, None, tools)
        if text is None:
            return None
        if text not in self._templates:
            self._templates[text] = ChatTemplate(self.tokenizer, text, self.stops)
        return self._templates[text]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, chat: Messages, template: str | None
) -> list[int]:
    """Return the token ids of a chat up to where the assistant's next turn begins.

    Args:
        tokenizer: tokenizer of the model.
        chat: the chat so far.
        template: Jinja text of a chat template. Without one, the result is the beginning of the
            example that `Encoder` makes of the chat.
    """
    if template is None:
        return _encode_untemplated(PrefixTokenizer(tokenizer), chat, None).ids
    return list(encode_chat(tokenizer, visible(chat), template)[0].tolist())


def _labelled(text: str, tokenised: Tokenised, spans: Iterable[Span]) -> Example:
    """Return an example that trains on the tokens in the spans."""
    labels = [IGNORED] * len(tokenised.ids)
    ends = [end for _, end in tokenised.offsets]
    for begin, end in spans:
        for place in range(bisect.bisect_right(ends, begin), len(ends)):
            first, _ = tokenised.offsets[place]
            if first >= end:
                break
            # A token that begins in the prompt is part of the prompt, unless only blanks of the
            # prompt are in it: many tokenizers attach a blank to the word that follows it.
            if not text[first:begin].strip():
                labels[place] = tokenised.ids[place]
    return Example(tokenised.ids, labels)


def _encode_untemplated(tokens: PrefixTokenizer, chat: Messages, tools: Tools) -> Example:
    """Return the example of a chat without a chat template.

    Roles are not written. Each answer follows its question directly and ends with the EOS token;
    other turns are separated by a blank line.

    Raises:
        ValueError: the chat calls tools, which only a template can write.
    """
    if tools or any(turn["content"] is None for turn in chat):
        raise ValueError(
            "a chat that calls tools needs a chat template, and this tokenizer has none"
        )
    ids: list[int] = []
    labels: list[int] = []
    for text, turn in _untemplated_pieces(chat):
        tokenised = tokens.tokenise(text)
        piece = tokenised.ids if labels else tokens.add_prefix(tokenised.ids)
        answer = turn["role"] == "assistant"
        if tokenised.complete:
            piece = piece if labels else tokens.add_suffix(piece)
            piece = tokens.add_eos(piece) if answer and not turn.get("cut") else [*piece]
        ids += piece
        labels += piece if answer else [IGNORED] * len(piece)
        enough = tokens.max_tokens is not None and len(ids) >= tokens.max_tokens
        if enough or not tokenised.complete:
            break
    return Example(ids, labels)


def _untemplated_pieces(chat: Messages) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (text, turn) for each answer, and for each run of other turns with its last turn."""
    for answers, group in itertools.groupby(chat, lambda turn: turn["role"] == "assistant"):
        turns = list(group)
        if answers:
            yield from ((turn["content"], turn) for turn in turns)
        else:
            yield "\n\n".join(turn["content"] for turn in turns), turns[-1]


def digest(examples: Iterable[Example]) -> str:
    """Return the SHA-256 hash of all ids and labels in their order."""
    hashed = hashlib.sha256()
    for example in examples:
        hashed.update(repr((example.ids, example.labels)).encode())
    return hashed.hexdigest()
