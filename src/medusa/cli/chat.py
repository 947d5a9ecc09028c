"""`medusa chat`: hold a conversation."""

from __future__ import annotations

from dataclasses import dataclass

from .options import AnswerOptions, ModelOptions
from .parameters import option


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Options of the conversation."""

    system: str | None = option("System message; by default none", default=None)


def chat(options: ChatOptions, answer: AnswerOptions, model: ModelOptions) -> None:
    """Hold a conversation; /help lists its commands. From a pipe, each line is a turn."""
    from .conversation import Chat
    from .models import load

    Chat(*load(model), answer, options.system).run()
