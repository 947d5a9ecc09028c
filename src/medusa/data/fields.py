"""Readers of chats in records. All commands use them, and so see the same chat in a record.

A field that holds a part of a conversation is read or refused. Metadata is skipped. A field that is
neither of these and holds text is reported once for each file.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

from .field_names import (
    CHATS,
    CONVERSATION_FIELDS,
    INPUTS,
    PROMPTS,
    RESPONSES,
    SYSTEMS,
    UNSUPPORTED,
    is_expected,
)
from .records import Record
from .turns import Messages, all_contained, check_cut, parse_text, parse_turn, texts_in


def read_chat(record: Record) -> Messages | str:
    """Return the chat of a record, or its plain text, to train on.

    Raises:
        ValueError: the record is malformed, or a field holds a part of a conversation whose place
            in the chat is unclear; the message names the place and the field.
    """
    return _read(record, answered=True)


def read_tools(record: Record) -> list[dict[str, Any]] | None:
    """Return the JSON schemas of the tools that a record's chat may call; None without tools.

    Raises:
        ValueError: `tools` is neither a list of objects nor the JSON of one.
    """
    tools = record.content.get("tools") if isinstance(record.content, dict) else None
    if not tools:
        return None
    problem = f"{record.place}: tools must be a list of objects, or JSON of one"
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) or None
        except (ValueError, RecursionError):
            raise ValueError(problem) from None
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
        raise ValueError(problem)
    return tools


def read_prompt(record: Record) -> Messages:
    """Return the chat of a record up to the last turn of the user.

    A text is one turn of the user. Of a list of questions the first one is the prompt.

    Raises:
        ValueError: the record has no turn of the user, is malformed, or has tools.
    """
    chat = _read_user_chat(record)
    fields = record.content
    if (
        isinstance(fields, dict)
        and _are_questions(fields.get("turns"))
        and not any(map(fields.get, (*CHATS, *PROMPTS)))
    ):
        first = next(number for number, turn in enumerate(chat) if turn["role"] == "user")
        chat = chat[: 1 + first]
    while chat[-1]["role"] != "user":
        chat = chat[:-1]
    return chat


def read_questions(record: Record) -> Messages:
    """Return the chat of a record whose user turns the model is to answer one after the other.

    A text is one turn of the user. A developer's turn becomes the system message.

    Raises:
        ValueError: the record has no turn of the user, is malformed, or has a turn of a tool.
    """
    chat = _read_user_chat(record)
    for turn in chat:
        if turn["role"] not in ("system", "developer", "user", "assistant"):
            raise ValueError(
                f"{record.place}: a turn of the {turn['role']} cannot be asked: leave out this "
                "record"
            )
    return [{**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in chat]


def _read_user_chat(record: Record) -> Messages:
    """Return the chat of a record without its responses; it has a turn of the user and no tools."""
    content = _read(record, answered=False)
    if read_tools(record):
        raise ValueError(
            f"{record.place}: tools are read in training only: leave out this record or the field "
            "tools"
        )
    chat = [{"role": "user", "content": content}] if isinstance(content, str) else content
    if not any(turn["role"] == "user" for turn in chat):
        raise ValueError(f"{record.place}: nobody asks in this record: it has no turn of the user")
    return chat


def _read(record: Record, answered: bool) -> Messages | str:
    """Return the chat or the text of a record; responses are read only if `answered`."""
    content, place = record.content, record.place
    if record.problem:
        raise ValueError(f"{place}: {record.problem}")
    if isinstance(content, str):
        return parse_text(content, place)
    if not isinstance(content, dict):
        raise ValueError(
            f"{place}: a record must be an object or a text, got {type(content).__name__}"
        )
    fields = _Fields(content, place, answered)
    chat = fields.chat()
    fields.check_unread(chat)
    for name in fields.unexpected() - record.reported:
        record.reported.add(name)
        warnings.warn(
            f"{place}: the field {name} holds text and is not read, here and in later records",
            stacklevel=3,
        )
    return chat


class _Fields:
    """The fields of a record, and the names of those that have been read."""

    def __init__(self, content: dict[str, Any], place: str, answered: bool):
        self.content, self.place, self.answered = content, place, answered
        self.read: set[str] = set()

    def chat(self) -> Messages | str:
        """Return the chat, or the text of a record that holds nothing else."""
        name = self._choose(CHATS)
        chat = self._turns(name) if name else self._prompt_and_response()
        if chat is None and self._has("turns"):
            chat = self._questions()
        if chat is None and isinstance(self.content.get("text"), str):
            text = parse_text(self._take("text"), f"{self.place}: text")
            if self.answered:
                return text
            chat = [{"role": "user", "content": text}]
        if chat is None and not self.answered and self._has("input"):
            chat = [{"role": "user", "content": self._text("input")}]
        if chat is None:
            return self._fail_without_chat()
        chat = self._with_context(chat)
        check_cut(chat, self.place)
        return chat

    def _fail_without_chat(self) -> Messages:
        """Raise the error of a record that holds no chat."""
        empty = next((name for name in CHATS if self.content.get(name) is not None), None)
        if empty:
            return self._turns(empty)  # raises, because the field is not a list of turns
        raise ValueError(
            f"{self.place}: a record needs messages, conversations, a prompt with a response, "
            f"or text; it has {', '.join(map(str, self.content)) or 'nothing'}"
        )

    def check_unread(self, chat: Messages | str) -> None:
        """Check that no unread field holds a part of a conversation that is missing in `chat`."""
        read_texts = [text for name in self.read for text in texts_in(self.content[name])]
        skipped = {
            *self.read,
            *(() if self.answered else RESPONSES),
            *(() if isinstance(chat, str) else ("tools",)),  # a text has no use for tools
        }
        for name in CONVERSATION_FIELDS:
            if name in skipped or not self._has(name):
                continue
            # A field that repeats what was read, in whole or in part, loses nothing.
            texts = list(texts_in(self.content[name]))
            repeats = all_contained(texts, read_texts) or all_contained(read_texts, texts)
            if name == "tools" or not repeats:
                raise ValueError(
                    f"{self.place}: {name} holds a part of the conversation that cannot be placed "
                    f"beside {', '.join(sorted(self.read))}: remove it, or move it into messages"
                )
        for name in UNSUPPORTED:
            if self.content.get(name):
                raise ValueError(
                    f"{self.place}: {name} cannot be read: remove it if it is not needed"
                )

    def unexpected(self) -> set[str]:
        """Return the names of fields with text that are neither conversation nor metadata."""
        return {
            name
            for name, value in self.content.items()
            if not is_expected(name) and any(texts_in(value))
        }

    def _prompt_and_response(self) -> Messages | None:
        """Return a prompt, and if `answered` its response; None if one of them is missing."""
        prompt_name, response_name = self._choose(PROMPTS), self._choose(RESPONSES)
        if self.answered:
            # An empty response is a response: it is read as an empty answer.
            response_name = response_name or next(
                (name for name in RESPONSES if name in self.content), None
            )
            if response_name is None:
                return None
            prompt_name = prompt_name or next(
                (name for name in (*PROMPTS, "input") if self.content.get(name) is not None), None
            )
        if prompt_name is None:
            # Preference data may have the prompt only inside the chosen chat.
            is_chat = response_name == "chosen" and isinstance(self.content["chosen"], list)
            return self._turns("chosen") if is_chat else None
        prompt = self._prompt(prompt_name)
        if not self.answered:
            return prompt
        assert response_name is not None
        return self._with_response(prompt, prompt_name, response_name)

    def _prompt(self, name: str) -> Messages:
        """Return the turns of a prompt field, followed by what `INPUTS` add to it."""
        if isinstance(self.content[name], list):
            return self._turns(name)
        names = [name, *(other for other in INPUTS if other != name and self._has(other))]
        return [{"role": "user", "content": "\n\n".join(filter(None, map(self._text, names)))}]

    def _with_response(self, prompt: Messages, prompt_name: str, response_name: str) -> Messages:
        """Return a prompt followed by its response."""
        if not isinstance(self.content[response_name], list):
            return [*prompt, {"role": "assistant", "content": self._text(response_name)}]
        response = self._turns(response_name)
        if response[0]["role"] not in ("system", "developer", "user"):
            return [*prompt, *response]
        # The response is a whole chat, which must repeat the prompt.
        if not all_contained(
            [turn["content"] for turn in prompt], [turn["content"] or "" for turn in response]
        ):
            raise ValueError(
                f"{self.place}: {response_name} begins with another turn than {prompt_name} has: "
                "give one of them"
            )
        return response

    def _questions(self) -> Messages:
        """Return the field `turns` as a chat; it holds turns, or questions of the user."""
        if not _are_questions(self.content["turns"]):
            return self._turns("turns")
        place = f"{self.place}: turns"
        return [
            {"role": "user", "content": parse_text(question, place)}
            for question in self._take("turns")
        ]

    def _with_context(self, chat: Messages) -> Messages:
        """Return a chat with the record's system message and history in front of it."""
        system = [turn for turn in chat[:1] if turn["role"] in ("system", "developer")]
        history = self._history() if self._has("history") else []
        name = self._choose(SYSTEMS)
        if name and not system:
            system = [{"role": "system", "content": self._text(name)}]
        elif system:
            chat = chat[1:]
        return [*system, *history, *chat]

    def _history(self) -> Messages:
        """Return the field `history` as turns."""
        history = self._take("history")
        if not isinstance(history, list):
            raise ValueError(
                f"{self.place}: history must be a list of [question, answer] pairs or of turns"
            )
        turns: Messages = []
        for number, entry in enumerate(history):
            place = f"{self.place}: history[{number}]"
            if isinstance(entry, (list, tuple)) and len(entry) == 2:
                turns += [
                    {"role": role, "content": parse_text(text, place)}
                    for role, text in zip(("user", "assistant"), entry, strict=True)
                ]
            elif isinstance(entry, dict):
                turns.append(parse_turn(entry, place))
            else:
                raise ValueError(f"{place} must be a [question, answer] pair or a turn")
        return turns

    def _turns(self, name: str) -> Messages:
        """Return a field that must hold a list of turns."""
        turns = self._take(name)
        if not isinstance(turns, list) or not turns:
            raise ValueError(f"{self.place}: {name} must be a list of turns")
        return [
            parse_turn(turn, f"{self.place}: {name}[{number}]") for number, turn in enumerate(turns)
        ]

    def _choose(self, names: tuple[str, ...]) -> str | None:
        """Return the first of these fields that contains all others, or the first one present."""
        present = [name for name in names if self._has(name)]
        for name in present:
            texts = list(texts_in(self.content[name]))
            if texts and all(
                all_contained(texts_in(self.content[other]), texts) for other in present
            ):
                return name
        return next(iter(present), None)

    def _has(self, name: str) -> bool:
        return self.content.get(name) not in (None, "", [], {})

    def _take(self, name: str) -> Any:
        """Return a field and mark it as read."""
        self.read.add(name)
        return self.content[name]

    def _text(self, name: str) -> str:
        return parse_text(self._take(name), f"{self.place}: {name}")


def _are_questions(value: Any) -> bool:
    """Return True if a field holds a list of texts."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
