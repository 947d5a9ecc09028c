"""Read chats out of records. Every command reads through this module, so that all of them see the
same chat.

A field that holds part of a conversation is read or refused. Metadata is passed over. A field that
is neither, and holds text, is reported once for each file.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from .records import Record

Messages = list[dict[str, Any]]
CHATS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "instruction", "question", "query")
INPUTS = ("input", "context")
"""What a prompt is about; it stands behind the prompt."""
RESPONSES = ("response", "completion", "output", "answer", "chosen")
SYSTEMS = ("system", "system_prompt")
KNOWN = (*CHATS, "turns", *PROMPTS, *INPUTS, *RESPONSES, *SYSTEMS, "history", "text", "tools")
UNREADABLE = (
    "functions",
    "documents",
    "chat_template_kwargs",
    *"image images audio audios video videos".split(),
)
"""What changes a conversation and cannot be read."""
METADATA = frozenset(
    """id uid uuid guid idx index key hash sha source origin dataset subset split config category
    categories topic domain task type kind tag tags label labels class language languages lang
    locale model models generator author license licence url link date time created timestamp tstamp
    version score scores rating rank difficulty level quality length file
    filename path name metadata meta
    info reference references rejected""".split()
)
METADATA_ENDS = tuple(
    "_id _ids _uuid _score _scores _rating _at _date _time _hash _url _model _source _lang".split()
)
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "observation")
OTHER_ROLES = {
    "human": "user",
    "prompter": "user",
    **dict.fromkeys(("gpt", "bot", "chatgpt", "model"), "assistant"),
}
"""What ShareGPT and its kin call the roles."""
NAMES = (("role", "from"), ("content", "value"))
"""What a turn calls its role and its content: in messages, and in ShareGPT."""


def read_chat(record: Record) -> Messages | str:
    """Return the chat of a record, or its plain text, to be learnt.

    Raises:
        ValueError: the record is malformed, or holds a part of a conversation that cannot be
            placed; names the place and the field.
    """
    return _read(record, answered=True)


def read_tools(record: Record) -> list[dict[str, Any]] | None:
    """Return the tools that a record's chat may call, None where there are none.

    Raises:
        ValueError: `tools` is no list of objects, nor the JSON of one.
    """
    told = record.content.get("tools") if isinstance(record.content, dict) else None
    if not told:
        return None
    if isinstance(told, str):
        try:
            told = json.loads(told) or None
        except (ValueError, RecursionError):
            raise ValueError(
                f"{record.place}: tools must be a list of objects, or JSON of one"
            ) from None
    if told is not None and not (
        isinstance(told, list) and all(isinstance(each, dict) for each in told)
    ):
        raise ValueError(f"{record.place}: tools must be a list of objects, or JSON of one")
    return told


def read_prompt(record: Record) -> Messages:
    """Return the chat of a record up to the last turn of the user; a text is one turn, of questions
    the first counts.

    Raises:
        ValueError: nobody asks in the record, it is malformed, or gives tools.
    """
    chat = _asked(record)
    told = record.content
    if (
        isinstance(told, dict)
        and _are_questions(told.get("turns"))
        and not any(map(told.get, (*CHATS, *PROMPTS)))
    ):
        chat = chat[
            : 1 + next(number for number, turn in enumerate(chat) if turn["role"] == "user")
        ]
    while chat[-1]["role"] != "user":
        chat = chat[:-1]
    return chat


def read_asked(record: Record) -> Messages:
    """Return the chat of a record, whose user turns are to be asked one after the other; a text is
    one turn.

    Raises:
        ValueError: nobody asks in the record, it is malformed, or a tool speaks, which cannot be
            asked.
    """
    chat = _asked(record)
    for turn in chat:
        if turn["role"] not in ("system", "developer", "user", "assistant"):
            raise ValueError(
                f"{record.place}: a turn of the {turn['role']} cannot be asked: leave out this "
                "record"
            )
    return [{**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in chat]


def _asked(record: Record) -> Messages:
    told = _read(record, answered=False)
    if read_tools(record):
        raise ValueError(
            f"{record.place}: tools are read in training only: leave out this record or the field "
            "tools"
        )
    chat = [{"role": "user", "content": told}] if isinstance(told, str) else told
    if not any(turn["role"] == "user" for turn in chat):
        raise ValueError(f"{record.place}: nobody asks in this record")
    return chat


def _read(record: Record, answered: bool) -> Messages | str:
    """Return a record's chat or text; `answered` tells whether responses are read."""
    told, place = record.content, record.place
    if record.problem:
        raise ValueError(f"{place}: {record.problem}")
    if isinstance(told, str):
        return _text(told, place)
    if not isinstance(told, dict):
        raise ValueError(
            f"{place}: a record must be an object or a text, got {type(told).__name__}"
        )
    fields = _Fields(told, place, answered)
    chat = fields.chat()
    fields.check(chat)
    for name in fields.unknown() - record.reported:
        record.reported.add(name)
        warnings.warn(
            f"{place}: the field {name} holds text and is not read, here and in later records",
            stacklevel=3,
        )
    return chat


class _Fields:
    """The fields of a record, and which of them have been read."""

    def __init__(self, told: dict[str, Any], place: str, answered: bool):
        self.told, self.place, self.answered = told, place, answered
        self.read: set[str] = set()

    def chat(self) -> Messages | str:
        """Return the chat, or the text of a record that has nothing else."""
        name = self._pick(CHATS)
        chat = self._turns(name) if name else self._pair()
        if chat is None and self._holds("turns"):
            chat = self._questions()
        if chat is None and isinstance(self.told.get("text"), str):
            text = _text(self._take("text"), f"{self.place}: text")
            if self.answered:
                return text
            chat = [{"role": "user", "content": text}]
        if chat is None and not self.answered and self._holds("input"):
            chat = [{"role": "user", "content": self._string("input")}]
        if chat is None:
            empty = next((name for name in CHATS if self.told.get(name) is not None), None)
            if empty:
                return self._turns(empty)  # says what it should be
            raise ValueError(
                f"{self.place}: a record needs messages, conversations, a prompt with a response, "
                "or text; it has "
                f"{', '.join(map(str, self.told)) or 'nothing'}"
            )
        chat = self._led(chat)
        _check_cut(chat, self.place)
        return chat

    def check(self, chat: Messages | str) -> None:
        """Raise ValueError where a field holds a part of a conversation that `chat` does not
        have.
        """
        said = [text for name in self.read for text in _texts(self.told[name])]
        skipped = {
            *self.read,
            *(() if self.answered else RESPONSES),
            *(() if isinstance(chat, str) else ("tools",)),
        }
        for name in KNOWN:
            if name in skipped or not self._holds(name):
                continue
            texts = list(_texts(self.told[name]))
            if name == "tools" or not (_within(texts, said) or _within(said, texts)):
                raise ValueError(
                    f"{self.place}: {name} holds a part of the conversation that cannot be placed "
                    "beside "
                    f"{', '.join(sorted(self.read))}: remove it, or move it into messages"
                )
        for name in UNREADABLE:
            if self.told.get(name):
                raise ValueError(
                    f"{self.place}: {name} cannot be read: remove it if it is not needed"
                )

    def unknown(self) -> set[str]:
        """Return the names of fields that hold text and are neither read nor metadata."""
        return {
            name for name, value in self.told.items() if not _is_known(name) and any(_texts(value))
        }

    def _pair(self) -> Messages | None:
        """Return a prompt with its response, None where one is missing."""
        asked, answer = self._pick(PROMPTS), self._pick(RESPONSES)
        if self.answered:
            answer = answer or next((name for name in RESPONSES if name in self.told), None)
            if answer is None:
                return None
            asked = asked or next(
                (name for name in (*PROMPTS, "input") if self.told.get(name) is not None), None
            )
        if asked is None:  # preferences may have the prompt in the chosen chat
            return (
                self._turns(answer)
                if answer == "chosen" and isinstance(self.told[answer], list)
                else None
            )
        if isinstance(self.told[asked], list):
            prompt = self._turns(asked)
        else:
            names = [asked, *(name for name in INPUTS if name != asked and self._holds(name))]
            prompt = [
                {"role": "user", "content": "\n\n".join(filter(None, map(self._string, names)))}
            ]
        if not self.answered:
            return prompt
        assert answer is not None
        if not isinstance(self.told[answer], list):
            return [*prompt, {"role": "assistant", "content": self._string(answer)}]
        response = self._turns(answer)
        if response[0]["role"] not in ("system", "developer", "user"):
            return [*prompt, *response]
        if not _within(
            [turn["content"] for turn in prompt], [turn["content"] or "" for turn in response]
        ):
            raise ValueError(
                f"{self.place}: {answer} begins with another turn than {asked} has: give one of "
                "them"
            )
        return response

    def _questions(self) -> Messages:
        if not _are_questions(self.told["turns"]):
            return self._turns("turns")
        where = f"{self.place}: turns"
        return [{"role": "user", "content": _text(each, where)} for each in self._take("turns")]

    def _led(self, chat: Messages) -> Messages:
        """Return a chat behind the record's history, and that behind its system message."""
        head = [turn for turn in chat[:1] if turn["role"] in ("system", "developer")]
        history = self._history() if self._holds("history") else []
        name = self._pick(SYSTEMS)
        if name and not head:
            head = [{"role": "system", "content": self._string(name)}]
        elif head:
            chat = chat[1:]
        return [*head, *history, *chat]

    def _history(self) -> Messages:
        told = self._take("history")
        if not isinstance(told, list):
            raise ValueError(
                f"{self.place}: history must be a list of [question, answer] pairs or of turns"
            )
        turns: Messages = []
        for number, each in enumerate(told):
            where = f"{self.place}: history[{number}]"
            if isinstance(each, (list, tuple)) and len(each) == 2:
                turns += [
                    {"role": role, "content": _text(said, where)}
                    for role, said in zip(("user", "assistant"), each, strict=True)
                ]
            elif isinstance(each, dict):
                turns.append(_turn(each, where))
            else:
                raise ValueError(f"{where} must be a [question, answer] pair or a turn")
        return turns

    def _turns(self, name: str) -> Messages:
        told = self._take(name)
        if not isinstance(told, list) or not told:
            raise ValueError(f"{self.place}: {name} must be a list of turns")
        return [_turn(each, f"{self.place}: {name}[{number}]") for number, each in enumerate(told)]

    def _pick(self, names: tuple[str, ...]) -> str | None:
        """Return which of the fields to read: the first that says all that the others say, or else
        the first.
        """
        here = [name for name in names if self._holds(name)]
        for name in here:
            texts = list(_texts(self.told[name]))
            if texts and all(_within(_texts(self.told[other]), texts) for other in here):
                return name
        return next(iter(here), None)

    def _holds(self, name: str) -> bool:
        return self.told.get(name) not in (None, "", [], {})

    def _take(self, name: str) -> Any:
        self.read.add(name)
        return self.told[name]

    def _string(self, name: str) -> str:
        return _text(self._take(name), f"{self.place}: {name}")


def _turn(told: Any, where: str) -> dict[str, Any]:
    """Return a turn with a role that is known and a text as its content; what else it has is for
    the template.
    """
    if not isinstance(told, dict):
        raise ValueError(f"{where} needs role and content")
    role, content = (
        told.get(ours) if told.get(ours) is not None else told.get(theirs) for ours, theirs in NAMES
    )
    calls = bool(told.get("tool_calls") or told.get("function_call"))
    if role is None or (content is None and not calls and not {"content", "value"} & told.keys()):
        raise ValueError(f"{where} needs role and content, or from and value")
    if not isinstance(role, str):
        raise ValueError(f"{where} must hold texts, got {type(role).__name__}")
    known = role.strip().lower()
    known = (
        "tool" if known == "observation" and "role" not in told else OTHER_ROLES.get(known, known)
    )
    if known not in ROLES:
        raise ValueError(f"{where}: unknown role {role}: roles are {', '.join(ROLES)}")
    if content is not None or not calls or known != "assistant":
        content = _text(content, where)
    rest = {name: value for name, value in told.items() if name not in ("from", "value")}
    return {**rest, "role": known, "content": content}


def _text(told: Any, where: str) -> str:
    """Return a text, or the texts of a list of parts as one.

    Raises:
        ValueError: it is something else, a part is no text, or it cannot be written as UTF-8.
    """
    if isinstance(told, list):
        return "".join(
            _part(part, f"{where}, part {number}") for number, part in enumerate(told, start=1)
        )
    if not isinstance(told, str):
        raise ValueError(f"{where} must hold texts, got {type(told).__name__}")
    try:
        told.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: half of a surrogate pair at character {error.start + 1} is no text"
        ) from None
    return told


def _part(told: Any, where: str) -> str:
    kind, text = (told.get("type"), told.get("text")) if isinstance(told, dict) else (None, told)
    if kind not in (None, "text", "input_text", "output_text"):
        raise ValueError(f"{where} is of type {kind}, and only text is read")
    if not isinstance(text, str):
        raise ValueError(f"{where} must hold a text, got {type(text).__name__}")
    return _text(text, where)


def _check_cut(chat: Messages, place: str) -> None:
    """Raise ValueError unless at most the last turn, an answer, is marked as cut."""
    for number, turn in enumerate(chat):
        cut = turn.get("cut")
        if cut is not None and not isinstance(cut, bool):
            raise ValueError(f"{place}: turn {number + 1}: cut must be true or false, got {cut!r}")
        if cut and (number + 1 < len(chat) or turn["role"] != "assistant"):
            raise ValueError(
                f"{place}: turn {number + 1} is cut: only an answer that ends the chat can be"
            )


def _texts(told: Any) -> Iterator[str]:
    """Yield the texts in a value that are not blank; of a turn or a part only what is said."""
    waiting = [told]  # no recursion: values may be nested deeply
    while waiting:
        each = waiting.pop()
        if isinstance(each, str) and each.strip():
            yield each.strip()
        elif isinstance(each, dict):
            waiting += [
                each[name] for name in ("content", "value", "text") if name in each
            ] or each.values()
        elif isinstance(each, (list, tuple)):
            waiting += each


def _within(texts: Iterable[str], others: list[str]) -> bool:
    """Return whether each text stands in one of the others."""
    return all(any(text.strip() in other for other in others) for text in texts)


def _are_questions(told: Any) -> bool:
    return isinstance(told, list) and bool(told) and all(isinstance(each, str) for each in told)


def _is_known(name: Any) -> bool:
    lower = str(name).lower()
    return (
        name in KNOWN
        or lower in METADATA
        or lower.endswith(METADATA_ENDS)
        or lower.startswith(("score_", "__"))
    )
