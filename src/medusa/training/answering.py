"""A model on this machine answers conversations, a batch of them turn by turn."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..data.chats import Encoder
from ..loading import MedusaModel
from ..text import answer_text
from .conversations import Ask, Conversation, Outcome, Settings, Turn


class OwnEngine:
    """Lets a model on this machine answer.

    Args:
        batch_size: conversations that are decoded at once.

    Raises:
        ValueError: the model is to ask itself, and its tokenizer has no chat template.
    """

    def __init__(
        self,
        model: MedusaModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings,
        batch_size: int,
    ):
        self.model, self.tokenizer, self.settings, self.batch_size = (
            model,
            tokenizer,
            settings,
            batch_size,
        )
        self.encoder = Encoder(tokenizer)
        if settings.self_talk and not self.encoder.template:
            raise ValueError(
                "self-talk needs a chat template, and this tokenizer has none: leave out "
                "--self-talk"
            )
        config = model.base.generation_config
        self.ends = {tokenizer.eos_token_id, *_listed(config.eos_token_id)} - {None}
        self.stop_strings = _listed(config.stop_strings)

    def drive(
        self, conversations: Sequence[tuple[str, Conversation]]
    ) -> Generator[Outcome, None, None]:
        """Yield the outcome of each conversation; one that cannot be asked costs no other."""
        for begin in range(0, len(conversations), self.batch_size):
            talking = [
                (name, each, next(each), 0)
                for name, each in conversations[begin : begin + self.batch_size]
            ]
            while talking:
                turns = self.answer([ask for _, _, ask, _ in talking])
                going = []
                for (name, each, _, tokens), turn in zip(talking, turns, strict=True):
                    if isinstance(turn, ValueError):
                        yield Outcome(name, turn, tokens)
                        continue
                    tokens += turn.tokens
                    try:
                        going.append((name, each, each.send(turn), tokens))
                    except StopIteration as ended:
                        yield Outcome(name, ended.value, tokens)
                talking = going

    def answer(self, asks: Sequence[Ask]) -> list[Turn | ValueError]:
        """Return a turn for each ask, or the error because of which it cannot be asked.

        A row's limit depends on its own prompt alone. A prompt that leaves no room gets an empty
        turn.
        """
        turns: dict[int, Turn | ValueError] = {}
        # Rows of one limit at a time: where a model's rotary factors change with the length
        # (longrope), they are chosen for a whole batch.
        groups: dict[int | None, list[tuple[int, list[int], int]]] = defaultdict(list)
        for place, ask in enumerate(asks):
            try:
                prompt = self._prompt(ask)
            except Exception as error:  # chat templates and tokenizers raise what they like
                turns[place] = ValueError(
                    f"the conversation cannot be written as a prompt: {error}"
                )
                continue
            limit = self.model.positions.longest(len(prompt))
            room = (
                min(self.settings.max_new_tokens, limit - len(prompt))
                if limit
                else self.settings.max_new_tokens
            )
            if room < 1:
                turns[place] = Turn("", 0, cut=True)
            else:
                groups[limit].append((place, prompt, room))
        for group in groups.values():
            found = self._decode([(prompt, room, asks[place].key) for place, prompt, room in group])
            turns.update(zip([place for place, _, _ in group], found, strict=True))
        return [turns[place] for place in range(len(asks))]

    def _decode(self, requests: Sequence[tuple[list[int], int, str]]) -> list[Turn]:
        """Return the turns for prompts with their own limits of new tokens and their keys."""
        sessions = []
        for prompt, room, key in requests:
            ids = torch.tensor([prompt], device=self.model.device)
            sessions.append(
                self.model.steps(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=room,
                    **({"eos_token_id": sorted(self.ends)} if self.ends else {}),
                    **({"tokenizer": self.tokenizer} if self.stop_strings else {}),
                    **self._sampling(key),
                )
            )
        rows = [row for session in sessions for row in session.rows]
        for _ in replace(sessions[0], rows=rows):
            pass
        return [
            self._turn(row.ids[len(prompt) :])
            for row, (prompt, _, _) in zip(rows, requests, strict=True)
        ]

    def _turn(self, ids: list[int]) -> Turn:
        """Return the turn that a row's new tokens make; what ended it is no part of its text."""
        text, ended = answer_text(self.tokenizer, ids, self.ends, self.stop_strings)
        return Turn(text, len(ids), cut=not ended)

    def _sampling(self, key: str) -> dict[str, Any]:
        if not self.settings.temperature:
            return {"do_sample": False}
        seed = int(hashlib.sha256(f"{self.settings.seed}/{key}".encode()).hexdigest()[:12], 16)
        generator = torch.Generator(self.model.device).manual_seed(seed)
        return {
            "do_sample": True,
            "temperature": self.settings.temperature,
            "generator": [generator],
        }

    def _prompt(self, ask: Ask) -> list[int]:
        """The token ids after which the model speaks in the role that is asked for."""
        if ask.role == "assistant":
            ids = self.encoder.prompt(ask.chat)
        else:
            here = "A user stands here"
            text = self.tokenizer.apply_chat_template(
                [*ask.chat, {"role": "user", "content": here}], tokenize=False
            )
            ids = self.tokenizer(str(text)[: str(text).rindex(here)], add_special_tokens=False)[
                "input_ids"
            ]
        if not ids:
            raise ValueError("it has no tokens")
        return list(ids)


def _listed(value: Any) -> list[Any]:
    """What a generation configuration names: one, several or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple, set)) else [value]
