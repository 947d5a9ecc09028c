"""Answers from a local model, for a batch of conversations turn by turn."""

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
from .conversations import Ask, Conversation, GenerationSettings, Outcome, Turn


class OwnEngine:
    """An answerer that runs a local model.

    Args:
        model: model that generates the answers.
        tokenizer: its tokenizer.
        settings: settings of the answers.
        batch_size: number of conversations that are decoded at once.

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
        """Run named conversations; yield each outcome. A refused one does not stop the others."""
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
        """Return the next turn of each conversation, or the error that prevents it.

        The limit of new tokens of a conversation depends on its own prompt only, not on the batch.
        A prompt that leaves no room for an answer gets an empty turn.
        """
        turns: dict[int, Turn | ValueError] = {}
        # Rows are decoded in groups with the same limit: models whose rotary factors change with
        # the length (longrope) choose them for a whole batch.
        groups: dict[int | None, list[tuple[int, list[int], int]]] = defaultdict(list)
        for place, ask in enumerate(asks):
            try:
                prompt = self._prompt(ask)
            except Exception as error:  # chat templates and tokenizers can raise any error
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
        """Return the turns for (prompt, limit of new tokens, key) triples."""
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
        """Return the turn of a row's new tokens, without the final EOS token or stop string."""
        ended = ids[-1] in self.ends
        text = str(self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True))
        if self.stop_strings and not ended:
            whole = str(self.tokenizer.decode(ids))
            ended = any(string in whole for string in self.stop_strings)
        for string in self.stop_strings:
            text = text.split(string)[0]
        if not ended:
            # A cut answer can end inside a character, whose missing bytes decode to this one.
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        return Turn(text.strip(), len(ids), cut=not ended)

    def _sampling(self, key: str) -> dict[str, Any]:
        """Return the sampling options of a turn; its key seeds its own random numbers."""
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
        """Return the token ids of a chat, up to where the requested role begins to speak."""
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
    """Return a value of a generation configuration as a list: it can be None, one or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple, set)) else [value]
