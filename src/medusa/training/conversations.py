"""Conversations for self-distillation (section 2.3.2): the questions of a seed, and a model's own
answers to them.

A conversation is a generator that yields what it wants said next (`Ask`) and is sent what a model
said (`Turn`). An engine drives many of them: a model on this machine (`answering`) or a server
(`server`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..data.turns import Messages


@dataclass(frozen=True)
class Settings:
    """What decides the text of the answers.

    Attributes:
        model: name of the model that answers.
        temperature: 0 answers greedily; the paper samples at 0.3.
        seed: of sampling; each turn of each conversation has its own random numbers.
        max_new_tokens: most tokens of an answer.
        self_talk: questions that the model asks itself after the seed's own.
        leave_out_cut: leave out answers that reach `max_new_tokens`, instead of keeping them,
            marked as cut.
    """

    model: str
    temperature: float = 0.3
    seed: int = 0
    max_new_tokens: int = 1024
    self_talk: int = 0
    leave_out_cut: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be 0 or a positive number, got {self.temperature}")
        if self.max_new_tokens < 1 or self.self_talk < 0:
            raise ValueError("max_new_tokens must be positive and self_talk not negative")


@dataclass(frozen=True)
class Ask:
    """A turn that a conversation waits for.

    Attributes:
        chat: what was said so far.
        role: who speaks next: "assistant", or "user" where the model asks itself.
        key: names the conversation and the turn; seeds the turn's random numbers.
    """

    chat: Messages
    role: str
    key: str


@dataclass(frozen=True)
class Turn:
    """What a model said.

    Attributes:
        text: the answer; empty where there is none.
        tokens: how many tokens it took.
        cut: whether it stops at a limit, not where the model would have ended it.
        reasoning: what the model thought before the answer, where the server tells it apart.
    """

    text: str
    tokens: int
    cut: bool = False
    reasoning: str | None = None

    @property
    def problem(self) -> str:
        """Why the turn cannot be used; empty where it can."""
        if self.text:
            return ""
        return "was cut off before its first word" if self.cut else "was empty"

    def message(self) -> dict[str, Any]:
        """The turn as an assistant's message. Nothing follows a message with `"cut": true`."""
        reasoning = {"reasoning_content": self.reasoning} if self.reasoning else {}
        return {
            "role": "assistant",
            "content": self.text,
            **reasoning,
            **({"cut": True} if self.cut else {}),
        }


@dataclass(frozen=True)
class Ended:
    """A conversation that has ended.

    Attributes:
        messages: what was said.
        why: why not every question was answered; empty where all were.
    """

    messages: Messages
    why: str = ""

    @property
    def answered(self) -> bool:
        """Return whether there is an answer in it."""
        return any(turn["role"] == "assistant" for turn in self.messages)

    @property
    def cut(self) -> bool:
        """Return whether its last answer was cut off."""
        return bool(self.messages) and self.messages[-1].get("cut", False)


@dataclass(frozen=True)
class Outcome:
    """What an engine reports of a conversation.

    Attributes:
        name: the conversation's.
        result: how it ended, or the error because of which it could not be held.
        tokens: how many the model wrote for it.
    """

    name: str
    result: Ended | ValueError
    tokens: int = 0


Conversation = Generator[Ask, Turn, Ended]


class Engine(Protocol):
    """Drives conversations to their end."""

    def drive(
        self, conversations: Sequence[tuple[str, Conversation]]
    ) -> Generator[Outcome, None, None]:
        """Yield the outcome of each named conversation as soon as there is one."""


def conversation(name: str, seed: Messages, settings: Settings) -> Conversation:
    """Ask the seed's questions in order, then let the model ask itself; returns what was said.

    The conversation ends at an answer that was cut off, and before one that is empty or to be left
    out.
    """
    messages: Messages = [turn for turn in seed if turn["role"] == "system"]
    asked = [turn for turn in seed if turn["role"] == "user"]
    for number in range(len(asked) + settings.self_talk):
        if number < len(asked):
            question = asked[number]
        else:
            told = yield Ask(messages, "user", f"{name}/{number}/user")
            if told.problem or told.cut:
                return Ended(messages, f"question {number + 1} {told.problem or 'was cut off'}")
            question = {"role": "user", "content": told.text}
        answer = yield Ask([*messages, question], "assistant", f"{name}/{number}/assistant")
        if answer.problem or (answer.cut and settings.leave_out_cut):
            return Ended(messages, f"answer {number + 1} {answer.problem or 'was cut off'}")
        messages = [*messages, question, answer.message()]
        if answer.cut:
            return Ended(messages, f"answer {number + 1} was cut off")
    return Ended(messages)
