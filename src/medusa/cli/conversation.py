"""The conversation of `medusa chat`, in a terminal or from a pipe, and its commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .. import files
from ..loading import MedusaModel
from ..text import encode_chat, stream_text
from .answer import show, start, summary, tokens_left
from .options import AnswerOptions
from .streams import as_text, note


@dataclass
class Chat:
    """A conversation, whose answers go to stdout and all else to stderr.

    Attributes:
        turns: messages of the user and of the assistant, in turn.
        stats: print a line of figures after each answer; by default if stdout is a terminal.

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    model: MedusaModel
    tokenizer: PreTrainedTokenizerBase
    options: AnswerOptions
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    stats: bool = field(default_factory=lambda: sys.stdout.isatty())

    def __post_init__(self) -> None:
        if self.system is not None:
            self.system = as_text(self.system, "--system")
        if self.tokenizer.chat_template is None:
            raise ValueError(
                "the model's tokenizer has no chat template: take a model made for chat, or use "
                "`medusa generate`"
            )

    @property
    def messages(self) -> list[dict[str, str]]:
        """The system message, if there is one, and the turns."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *self.turns]

    def run(self) -> None:
        """Read lines and answer them until /exit or the end of input.

        Raises:
            KeyboardInterrupt: Ctrl-C; while an answer is decoded in a terminal, it only stops that
                answer.
        """
        interactive = in_terminal()
        if interactive:
            with suppress(ImportError):
                import readline  # noqa: F401 (importing it is what gives `input` a history)
            note("/help lists commands; Ctrl-C stops an answer, Ctrl-D leaves")
        while True:
            try:
                line = as_text(input("> " if interactive else ""), "the line")
            except EOFError:
                if interactive:
                    note("")
                return
            except ValueError as error:
                note(f"error: {error}")
                continue
            if line.startswith("/"):
                name, _, argument = line[1:].strip().partition(" ")
                if name == "exit":
                    return
                self.command(name, argument.strip())
            elif line.strip():
                self.turn(line.strip())

    def turn(self, text: str) -> None:
        """Answer a message, and add the message and its answer to the turns.

        A message that the model cannot answer is reported and not added. An answer that Ctrl-C
        stops in a terminal is added as far as it came.

        Raises:
            KeyboardInterrupt: Ctrl-C outside a terminal, where no user can go on.
        """
        self.turns.append({"role": "user", "content": text})
        try:
            session = start(self.model, self.tokenizer, self.fitting_prompt(), self.options)
        except ValueError as error:
            self.turns.pop()
            note(f"error: {error}")
            return
        answer, stopped = "", False
        try:
            for piece, accepted in stream_text(session.events(), self.tokenizer):
                answer += piece
                show(piece, accepted)
        except KeyboardInterrupt:
            if not in_terminal():
                raise
            stopped = True
        self.turns.append({"role": "assistant", "content": answer})
        show("\n", False)
        if self.stats:
            note(("stopped; " if stopped else "") + summary(session.stats))
        elif stopped:
            note("stopped")

    def fitting_prompt(self) -> Tensor:
        """Return token ids [1, P] of the conversation; drop its oldest turns if it is too long.

        It is too long if it leaves an answer less room than `max_new_tokens` and than half of the
        model's positions. The last message is always kept.
        """
        ids, dropped, positions = self._prompt(), 0, tokens_left(self.model, 0)
        wanted = 0 if positions is None else min(self.options.max_new_tokens, positions // 2)
        while (
            (left := tokens_left(self.model, ids.shape[1])) is not None
            and left < wanted
            and len(self.turns) > 1
        ):
            del self.turns[:2]
            dropped += 1
            ids = self._prompt()
        if dropped:
            note(f"the conversation is too long for the model: forgot the oldest {_turns(dropped)}")
        return ids

    def _prompt(self) -> Tensor:
        return encode_chat(self.tokenizer, self.messages)

    def command(self, name: str, argument: str) -> None:
        """Carry out a /command, or report that there is none of that name."""
        if name in COMMANDS:
            COMMANDS[name][0](self, argument)
        else:
            note(
                f"unknown command /{name}: /help lists them; a space before it sends it as a "
                "message"
            )

    def help(self, _: str) -> None:
        """List the commands."""
        for usage, text in (entry[1:] for entry in COMMANDS.values()):
            note(f"{usage:15} {text}")
        note(f"{'/exit':15} leave")

    def reset(self, _: str) -> None:
        """Forget the turns, but not the system message."""
        self.turns.clear()
        note("the conversation is forgotten")

    def undo(self, _: str) -> None:
        """Drop the last message and its answer."""
        note("the last turn is dropped" if self.turns else "there is no turn to drop")
        del self.turns[-2:]

    def set_system(self, text: str) -> None:
        """Set the system message; without text, remove it."""
        self.system = text or None
        note("the system message is set" if text else "there is no system message now")

    def set_stats(self, text: str) -> None:
        """Turn the figures after each answer on or off."""
        if text not in ("on", "off"):
            note("error: say /stats on or /stats off")
            return
        self.stats = text == "on"

    def save(self, name: str) -> None:
        """Write the messages to a file as JSON."""
        if not name:
            note("error: name a file: /save FILE")
            return
        try:
            with files.replacing(Path(name).expanduser()) as beside:
                beside.write_text(
                    json.dumps(self.messages, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
                )
        except OSError as error:
            note(f"error: {error}")
        else:
            note(f"{_turns(len(self.turns) // 2)} saved in {name}")


COMMANDS: dict[str, tuple[Callable[[Chat, str], None], str, str]] = {
    "help": (Chat.help, "/help", "list the commands"),
    "reset": (Chat.reset, "/reset", "forget the conversation"),
    "undo": (Chat.undo, "/undo", "drop the last turn"),
    "system": (Chat.set_system, "/system TEXT", "set the system message; without TEXT, remove it"),
    "stats": (Chat.set_stats, "/stats on|off", "print figures after each answer, or stop it"),
    "save": (Chat.save, "/save FILE", "write the messages as JSON"),
}
"""Method, usage and help text of each /command."""


def in_terminal() -> bool:
    """Return True if a user types and reads; otherwise input is piped, one turn per line."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _turns(count: int) -> str:
    return f"{count} turn" + ("" if count == 1 else "s")
