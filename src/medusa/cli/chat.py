"""`medusa chat`: a conversation in the terminal, or a turn a line from a pipe."""

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
from .answer import Sampling, encode_chat, note, pieces, room, show, start, summary
from .streams import as_text


@dataclass
class Chat:
    """A conversation under way.

    Answers go to stdout, everything else to stderr.

    Attributes:
        turns: messages of user and assistant in turn.
        stats: whether a line of figures follows each answer; by default on a terminal.

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    model: MedusaModel
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
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
        """The whole conversation, the system message first."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *self.turns]

    def run(self) -> None:
        """Read and answer until /exit or the end of input; Ctrl-C ends what is not an answer in a
        terminal.
        """
        interactive = in_terminal()
        if interactive:
            with suppress(ImportError):
                import readline  # noqa: F401
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
        """Answer a message; a turn that cannot be answered is taken back, one interrupted keeps
        what there is.

        Raises:
            KeyboardInterrupt: the answer was interrupted, and nobody is there to go on.
        """
        self.turns.append({"role": "user", "content": text})
        answer = ""
        try:
            session = start(self.model, self.tokenizer, self.fitting(), self.sampling)
        except ValueError as error:
            self.turns.pop()
            note(f"error: {error}")
            return
        try:
            for piece, accepted in pieces(session, self.tokenizer):
                answer += piece
                show(piece, accepted)
            end = ""
        except KeyboardInterrupt:
            if not in_terminal():
                raise
            end = "stopped; "
        self.turns.append({"role": "assistant", "content": answer})
        show("\n", False)
        if self.stats:
            note(end + summary(session.stats))
        elif end:
            note("stopped")

    def fitting(self) -> Tensor:
        """Return token ids [1, P] of the conversation, without its oldest turns where they leave an
        answer no room.
        """
        ids, dropped, whole = encode_chat(self.tokenizer, self.messages), 0, room(self.model, 0)
        wanted = 0 if whole is None else min(self.sampling.max_new_tokens, whole // 2)
        while (
            (left := room(self.model, ids.shape[1])) is not None
            and left < wanted
            and len(self.turns) > 1
        ):
            del self.turns[:2]
            dropped += 1
            ids = encode_chat(self.tokenizer, self.messages)
        if dropped:
            note(f"the conversation is too long for the model: forgot the oldest {_turns(dropped)}")
        return ids

    def command(self, name: str, argument: str) -> None:
        """Carry out a /command, or say what is wrong with it."""
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
        """Forget the turns, not the system message."""
        self.turns.clear()
        note("the conversation is forgotten")

    def undo(self, _: str) -> None:
        """Drop the last turn."""
        note("the last turn is dropped" if self.turns else "there is no turn to drop")
        del self.turns[-2:]

    def set_system(self, text: str) -> None:
        """Set the system message, or remove it."""
        self.system = text or None
        note("the system message is set" if text else "there is no system message now")

    def set_stats(self, text: str) -> None:
        """Turn figures on or off."""
        if text not in ("on", "off"):
            note("error: say /stats on or /stats off")
            return
        self.stats = text == "on"

    def save(self, name: str) -> None:
        """Write the messages as JSON."""
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
    "stats": (Chat.set_stats, "/stats on|off", "figures after each answer"),
    "save": (Chat.save, "/save FILE", "write the messages as JSON"),
}


def in_terminal() -> bool:
    """Return whether somebody types and reads; else input is piped, a turn a line."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _turns(count: int) -> str:
    return f"{count} turn" + ("" if count == 1 else "s")
