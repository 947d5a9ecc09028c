"""Conversations for self-distillation (section 2.3.2): questions of a data set, a model's answers.

A conversation is a generator: it yields the next turn that it needs (`Ask`) and is sent what the
model said (`Turn`). An `Answerer` runs many conversations: a local model (`answering`) or a server
(`server`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..data.turns import Messages


@dataclass(frozen=True)
class GenerationSettings:
    """Settings that determine the text of the answers; a file of answers has one set of them.

    Attributes:
        model: name of the model that generates the answers.
        temperature: sampling temperature; 0 decodes greedily, and the paper samples at 0.3.
        seed: seed of the sampling; each turn of each conversation has its own random numbers.
        max_new_tokens: maximum number of tokens of an answer.
        self_talk: number of questions that the model asks itself after the first ones.
        leave_out_cut: leave out answers that reach `max_new_tokens`; by default they are kept and
            marked as cut.
        question_temperature: sampling temperature of the questions that the model asks itself.
        max_question_tokens: maximum number of tokens of such a question; a longer one ends the
            conversation.

    Raises:
        ValueError: a value is out of range.
    """

    model: str
    temperature: float = 0.3
    seed: int = 0
    max_new_tokens: int = 1024
    self_talk: int = 0
    leave_out_cut: bool = False
    question_temperature: float = 1.0
    max_question_tokens: int = 128

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be 0 or a positive number, got {self.temperature}")
        if not 0 < self.question_temperature < math.inf:
            raise ValueError(
                f"question_temperature must be above 0, got {self.question_temperature}"
            )
        if min(self.max_new_tokens, self.max_question_tokens) < 1 or self.self_talk < 0:
            raise ValueError(
                "max_new_tokens and max_question_tokens must be positive, self_talk not negative"
            )


def first_question(messages: Messages) -> str:
    """Return the text of the first turn of the user; empty if there is none."""
    contents = (turn.get("content") for turn in messages if turn.get("role") == "user")
    content = next(contents, "")
    return content if isinstance(content, str) else ""


@dataclass(frozen=True)
class Ask:
    """A request of a conversation for its next turn.

    Attributes:
        chat: the turns so far.
        role: role of the next turn: "assistant", or "user" if the model asks itself.
        key: unique name of the turn; seeds its random numbers.
    """

    chat: Messages
    role: str
    key: str


@dataclass(frozen=True)
class Turn:
    """A turn that a model generated.

    Attributes:
        text: text of the turn; empty if the model said nothing.
        tokens: number of tokens generated.
        cut: True if the text ends at a limit, not where the model would have ended it.
        reasoning: text that the model generated before the answer, if a server reports it.
    """

    text: str
    tokens: int
    cut: bool = False
    reasoning: str | None = None

    @property
    def problem(self) -> str:
        """Reason why the turn cannot be used; empty if it can."""
        if self.text:
            return ""
        return "was cut off before its first word" if self.cut else "was empty"

    def message(self) -> dict[str, Any]:
        """Return the turn as an assistant's message; a message with `"cut": true` ends a chat."""
        reasoning = {"reasoning_content": self.reasoning} if self.reasoning else {}
        return {
            "role": "assistant",
            "content": self.text,
            **reasoning,
            **({"cut": True} if self.cut else {}),
        }


@dataclass(frozen=True)
class FinishedConversation:
    """A conversation that has ended.

    Attributes:
        messages: its turns.
        why: reason why some questions have no answer; empty if all have one.
    """

    messages: Messages
    why: str = ""

    @property
    def answered(self) -> bool:
        """Return True if the conversation has at least one answer."""
        return any(turn["role"] == "assistant" for turn in self.messages)

    @property
    def cut(self) -> bool:
        """Return True if the last answer was cut off."""
        return bool(self.messages) and self.messages[-1].get("cut", False)


@dataclass(frozen=True)
class Outcome:
    """An answerer's report of a conversation.

    Attributes:
        name: name of the conversation.
        result: the finished conversation, or the error because of which it could not be held.
        tokens: number of tokens that the model generated for it.
    """

    name: str
    result: FinishedConversation | ValueError
    tokens: int = 0


Conversation = Generator[Ask, Turn, FinishedConversation]
"""A conversation under way."""


class Answerer(Protocol):
    """A model or a server that answers the turns of conversations."""

    def check_own_questions(self) -> None:
        """Raise ValueError if the model cannot ask itself questions."""

    def drive(
        self, conversations: Sequence[tuple[str, Conversation]]
    ) -> Generator[Outcome, None, None]:
        """Run named conversations to their end; yield each outcome as soon as it is known."""


def conversation(
    name: str, seed: Messages, settings: GenerationSettings, asked: set[str] | None = None
) -> Conversation:
    """Return a conversation that asks the questions of `seed`, and then lets the model ask itself.

    The conversation ends after an answer that was cut off, and before an answer that is empty or to
    be left out.

    Args:
        name: unique name of the conversation.
        seed: a chat, whose system message and user turns are used. If it has no turn of the user,
            the model asks the first question itself.
        settings: settings of the answers.
        asked: first questions of other conversations. The model's own first question joins them; if
            it is among them, the conversation ends.
    """
    asked = set() if asked is None else asked
    messages: Messages = [turn for turn in seed if turn["role"] == "system"]
    questions = [turn for turn in seed if turn["role"] == "user"]
    for number in range(max(1, len(questions)) + settings.self_talk):
        if number < len(questions):
            question = questions[number]
        else:
            own = yield Ask(messages, "user", f"{name}/{number}/user")
            if own.problem or own.cut:
                why = f"question {number + 1} {own.problem or 'was cut off'}"
                return FinishedConversation(messages, why)
            if number == 0 and own.text in asked:
                return FinishedConversation(messages, "question 1 was asked before")
            if number == 0:
                asked.add(own.text)
            question = {"role": "user", "content": own.text}
        answer = yield Ask([*messages, question], "assistant", f"{name}/{number}/assistant")
        if answer.problem or (answer.cut and settings.leave_out_cut):
            why = f"answer {number + 1} {answer.problem or 'was cut off'}"
            return FinishedConversation(messages, why)
        messages = [*messages, question, answer.message()]
        if answer.cut:
            return FinishedConversation(messages, f"answer {number + 1} was cut off")
    return FinishedConversation(messages)
