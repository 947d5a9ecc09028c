"""A model on this machine answers conversations; as one ends, the next one takes its row."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..core.engine import Engine
from ..core.request import Request, Row
from ..data.chats import Encoder
from ..data.turns import Messages
from ..generation import prepare
from ..loading import MedusaModel
from ..text import answer_text
from .conversations import Ask, Conversation, GenerationSettings, Outcome, Turn

QUESTION_TOP_P = 0.95
"""Top-p of the questions that a model asks itself."""
MARK = "A user stands here"
"""Text of a user's turn, by which the text around such a turn is found in a rendered chat."""
AHEAD = 2
"""Conversations begun, in batch sizes: those without a row wait for the next one that is free."""


@dataclass
class Talk:
    """A conversation under way, its next turn, and the tokens that the model has written for it."""

    name: str
    conversation: Conversation
    ask: Ask
    tokens: int = 0


class LocalAnswerer:
    """An answerer that runs a local model.

    Args:
        model: the model that answers.
        tokenizer: its tokenizer.
        settings: settings of the answers.
        batch_size: answers that are decoded at the same time.

    Raises:
        ValueError: the settings ask for self-talk, and the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: MedusaModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: GenerationSettings,
        batch_size: int,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.settings, self.batch_size = settings, batch_size
        self.encoder = Encoder(tokenizer)
        if settings.self_talk:
            self.check_own_questions()
        config = model.base.generation_config
        self.ends = {tokenizer.eos_token_id, *_listed(config.eos_token_id)} - {None}
        self.stop_strings = _listed(config.stop_strings)

    def check_own_questions(self) -> None:
        """Raise ValueError if the model cannot ask itself questions."""
        if not self.encoder.template:
            raise ValueError(
                "questions of the model's own need a chat template, and this tokenizer has none: "
                "leave out --self-prompts and --self-talk"
            )

    def drive(
        self, conversations: Sequence[tuple[str, Conversation]]
    ) -> Generator[Outcome, None, None]:
        """Yield the outcome of each conversation as soon as there is one.

        If no request can be made for a conversation, only this conversation ends, with an error.
        """
        waiting = deque(Talk(name, each, next(each)) for name, each in conversations)
        engine, talks = Engine(self.model, self.batch_size), dict[int, Talk]()
        try:
            while waiting or talks:
                while waiting and len(talks) < AHEAD * self.batch_size:
                    talk = waiting.popleft()
                    yield from self._ask(engine, talks, talk)
                for event in engine.step():
                    if event.finish_reason is not None:
                        talk = talks.pop(event.request)
                        yield from self._answered(engine, talks, talk, event.row)
        finally:
            engine.close()

    def _ask(self, engine: Engine, talks: dict[int, Talk], talk: Talk) -> Iterator[Outcome]:
        """Submit the request for a conversation's next turn; yield the outcome if this ends it."""
        try:
            request = self._request(talk.ask)
        except ValueError as error:
            yield Outcome(talk.name, error, talk.tokens)
            return
        if request is None:
            yield from self._tell(engine, talks, talk, Turn("", 0, cut=True))
        else:
            talks[engine.submit(request).number] = talk

    def _answered(
        self, engine: Engine, talks: dict[int, Talk], talk: Talk, row: Row
    ) -> Iterator[Outcome]:
        if row.error is not None:
            error = ValueError(f"the model could not answer: {row.error}")
            yield Outcome(talk.name, error, talk.tokens)
            return
        ids = row.ids[len(row.request.ids) :]
        _, stop_strings = self._ends_of(talk.ask)
        text = answer_text(self.tokenizer, ids, row.finish_reason, stop_strings)
        turn = Turn(text, len(ids), cut=row.finish_reason == "length")
        talk.tokens += turn.tokens
        yield from self._tell(engine, talks, talk, turn)

    def _tell(
        self, engine: Engine, talks: dict[int, Talk], talk: Talk, turn: Turn
    ) -> Iterator[Outcome]:
        """Send a turn of the model to its conversation, and submit the next request for it."""
        try:
            talk.ask = talk.conversation.send(turn)
        except StopIteration as ended:
            yield Outcome(talk.name, ended.value, talk.tokens)
        else:
            yield from self._ask(engine, talks, talk)

    def _request(self, ask: Ask) -> Request | None:
        """Return the request for a turn; None if the prompt fills the model's positions.

        Raises:
            ValueError: the conversation cannot be written as a prompt.
        """
        try:
            prompt = self._prompt(ask)
        except Exception as error:  # chat templates and tokenizers may raise anything
            raise ValueError(f"the conversation cannot be written as a prompt: {error}") from error
        limit = self.model.positions.longest(len(prompt))
        settings = self.settings
        max_new_tokens = (
            settings.max_question_tokens if ask.role == "user" else settings.max_new_tokens
        )
        if limit is not None:
            max_new_tokens = min(max_new_tokens, limit - len(prompt))
        if max_new_tokens < 1:
            return None
        ids = torch.tensor([prompt], device=self.model.device)
        options: dict[str, Any] = {
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": max_new_tokens,
        }
        ends, stop_strings = self._ends_of(ask)
        if ends:
            options["eos_token_id"] = sorted(ends)
        if stop_strings:
            options |= {"tokenizer": self.tokenizer, "stop_strings": stop_strings}
        sampling = self._sampling(ask)
        request = prepare(self.model, ids, **options, **sampling).requests[0]
        # answers without sampling share what the engine learns about its trees
        return request if sampling["do_sample"] else replace(request, schedule=None)

    def _sampling(self, ask: Ask) -> dict[str, Any]:
        own_question = ask.role == "user"
        settings = self.settings
        temperature = settings.question_temperature if own_question else settings.temperature
        if not temperature:
            return {"do_sample": False}
        name = f"{settings.seed}/{ask.key}".encode()
        seed = int(hashlib.sha256(name).hexdigest()[:12], 16)
        generator = torch.Generator(self.model.device).manual_seed(seed)
        return {
            "do_sample": True,
            "temperature": temperature,
            **({"top_p": QUESTION_TOP_P, "top_k": 0} if own_question else {}),
            "generator": [generator],
        }

    def _prompt(self, ask: Ask) -> list[int]:
        """Return the prompt of a turn: the model continues it in the role of the turn."""
        if ask.role == "assistant":
            ids = self.encoder.prompt(ask.chat)
        else:
            before, _ = self._around_question(ask.chat)
            ids = self.tokenizer(before, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError("it has no tokens")
        return list(ids)

    def _around_question(self, chat: Messages) -> tuple[str, str]:
        """Return the texts that the template writes before and after a user's next turn."""
        chat = [*chat, {"role": "user", "content": MARK}]
        text = str(self.tokenizer.apply_chat_template(chat, tokenize=False))
        before, _, after = text.rpartition(MARK)
        return before, after

    def _ends_of(self, ask: Ask) -> tuple[set[int], list[str]]:
        """Return the token ids and the strings that end a turn.

        A question of the model's own also ends where the template would go on after it.
        """
        return self._question_ends if ask.role == "user" else (self.ends, self.stop_strings)

    @cached_property
    def _question_ends(self) -> tuple[set[int], list[str]]:
        _, after = self._around_question([])
        ids = self.tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"]
        if not ids:
            return self.ends, self.stop_strings
        if ids[0] in self.tokenizer.added_tokens_decoder:
            return {*self.ends, ids[0]}, self.stop_strings
        return self.ends, [*self.stop_strings, after.strip()]


def _listed(value: Any) -> list[Any]:
    """Return a value of a generation configuration, which is one, several or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple, set)) else [value]
