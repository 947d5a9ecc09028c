"""Text to token ids and back: chat prompts, text that streams, and the ends of answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .core.request import Event

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""The character that tokenizers return for an incomplete character."""


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    template: str | None = None,
    tools: list[dict[str, Any]] | None = None,
    unfinished: bool = False,
) -> Tensor:
    """Return token ids [1, P] of a conversation, up to where the assistant's answer begins.

    Args:
        template: Jinja text of a chat template; by default the tokenizer's own.
        tools: functions that the model may call, in OpenAI's form.
        unfinished: the last message is the assistant's, and the answer continues it.

    Raises:
        ValueError: the chat template refuses the conversation.
    """
    try:
        ids = tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=template,
            add_generation_prompt=not unfinished,
            continue_final_message=unfinished,
            return_dict=True,
            return_tensors="pt",
        )["input_ids"]
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses the conversation: {error}") from error
    return torch.as_tensor(ids)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, raw: bool = False) -> Tensor:
    """Return token ids [1, P] of a text that a model is to answer.

    Args:
        raw: encode the text itself. Otherwise it becomes a user's message where the tokenizer has
            a chat template.

    Raises:
        ValueError: the chat template refuses the message.
    """
    if tokenizer.chat_template is not None and not raw:
        return encode_chat(tokenizer, [{"role": "user", "content": text}])
    return torch.as_tensor(tokenizer(text, return_tensors="pt")["input_ids"])


class Detokenizer:
    """An incremental decoder: takes tokens as they come and returns the text that they complete.

    Several tokens may share a character. Text is held back until its last character is whole, so
    the pieces joined, with that of `flush`, are the text of all tokens decoded at once.

    The cost of a piece does not grow with the text: only tokens since the piece before the last
    one are decoded again. They are needed because the text of a token may depend on the token
    before it, such as a space in front of a word.

    Args:
        kept: special tokens that are part of the text; other special tokens are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kept: Sequence[str] = ()):
        self.tokenizer = tokenizer
        # decode leaves out all special tokens or none; here some of them may stay
        self._left_out = _special_ids(tokenizer, kept) if kept else None
        self._ids: list[int] = []
        self._returned = 0  # how many of these tokens have been returned as text

    def push(self, tokens: Sequence[int]) -> str:
        """Add tokens; return the text that they complete."""
        self._ids += tokens
        text = self._decode(self._ids)
        return "" if text.endswith(INCOMPLETE) else self._rest_of(text)

    def flush(self) -> str:
        """Return the text that is still held back."""
        return self._rest_of(self._decode(self._ids))

    def _rest_of(self, text: str) -> str:
        rest = text[len(self._decode(self._ids[: self._returned])) :]
        if rest:
            self._ids = self._ids[self._returned :]
            self._returned = len(self._ids)
        return rest

    def _decode(self, ids: list[int]) -> str:
        skip = self._left_out is None
        shown = ids if self._left_out is None else [id for id in ids if id not in self._left_out]
        return str(
            self.tokenizer.decode(
                shown, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
        )


def _special_ids(tokenizer: PreTrainedTokenizerBase, kept: Sequence[str]) -> set[int]:
    """Return the ids of all special tokens but some."""
    added = {id: str(each) for id, each in tokenizer.added_tokens_decoder.items() if each.special}
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return {id for id, text in {**added, **named}.items() if text not in kept}


def stream_text(
    events: Iterable[Event], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, bool]]:
    """Yield the text of an answer as its tokens come.

    Each piece comes with True where its tokens are accepted candidates, and with False where they
    are the base model's own token, which usually ends a step.

    Args:
        events: the events of the answer's steps.
    """
    detokenizer = Detokenizer(tokenizer)
    for event in events:
        if event.accepted:
            yield detokenizer.push(event.tokens[: event.accepted]), True
        yield detokenizer.push(event.tokens[event.accepted :]), False
    yield detokenizer.flush(), False


def answer_text(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    finish_reason: str | None,
    stop_strings: Sequence[str] = (),
) -> str:
    """Return the text of an answer without what ended it.

    An answer that reached a limit may end in the middle of a character, which is left out.

    Args:
        ids: the answer's token ids.
        finish_reason: why it ended: "stop" (its last token is the end token), "stop_string",
            "length" or "cancelled".
        stop_strings: texts that end an answer.
    """
    ids = ids[:-1] if finish_reason == "stop" else ids
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    for string in stop_strings:
        text = text.split(string)[0]
    if finish_reason not in ("stop", "stop_string"):
        text = text.rstrip(INCOMPLETE)
    return text.strip()
