"""Turns of a conversation: their roles, and the texts in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

Messages = list[dict[str, Any]]
"""A chat: turns with `role` and `content`, and whatever else the chat template reads."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "observation")
ROLE_ALIASES = {
    "human": "user",
    "prompter": "user",
    **dict.fromkeys(("gpt", "bot", "chatgpt", "model"), "assistant"),
}
"""Role names of ShareGPT and similar data sets, with the usual names of these roles."""
KEYS = (("role", "from"), ("content", "value"))
"""Keys of a turn's role and content: the usual name, and ShareGPT's."""


def parse_turn(raw: Any, place: str) -> dict[str, Any]:
    """Return a turn with a standard role and a text as content; its other keys are kept.

    Only a turn of the assistant that calls tools may have None as content.

    Args:
        raw: a turn as a data source has it.
        place: location of the turn, for errors.

    Raises:
        ValueError: `raw` is not a turn, its role is unknown, or its content is not a text.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{place} needs role and content")
    role, content = (
        raw.get(usual) if raw.get(usual) is not None else raw.get(sharegpt)
        for usual, sharegpt in KEYS
    )
    calls = calls_tools(raw)
    if role is None or (content is None and not calls and not {"content", "value"} & raw.keys()):
        raise ValueError(f"{place} needs role and content, or from and value")
    if not isinstance(role, str):
        raise ValueError(f"{place} must hold texts, got {type(role).__name__}")
    standard = _standard_role(role, sharegpt="role" not in raw)
    if standard not in ROLES:
        raise ValueError(f"{place}: unknown role {role}: roles are {', '.join(ROLES)}")
    if content is not None or not calls or standard != "assistant":
        content = parse_text(content, place)
    rest = {name: value for name, value in raw.items() if name not in ("from", "value")}
    return {**rest, "role": standard, "content": content}


def _standard_role(role: str, sharegpt: bool) -> str:
    name = role.strip().lower()
    # ShareGPT calls a tool's result an observation; in other data this role has a template's own
    # meaning and is kept.
    if sharegpt and name == "observation":
        return "tool"
    return ROLE_ALIASES.get(name, name)


def calls_tools(turn: dict[str, Any]) -> bool:
    """Return True if a turn calls tools."""
    return bool(turn.get("tool_calls") or turn.get("function_call"))


def parse_text(raw: Any, place: str) -> str:
    """Return a text; the parts of a list of text parts are joined.

    Raises:
        ValueError: `raw` is not a text, a part is not a text, or it cannot be encoded as UTF-8.
    """
    if isinstance(raw, list):
        return "".join(
            _parse_part(part, f"{place}, part {number}") for number, part in enumerate(raw, start=1)
        )
    if not isinstance(raw, str):
        raise ValueError(f"{place} must hold texts, got {type(raw).__name__}")
    try:
        raw.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place}: half of a surrogate pair at character {error.start + 1}: it is not text"
        ) from None
    return raw


def _parse_part(raw: Any, place: str) -> str:
    kind, text = (raw.get("type"), raw.get("text")) if isinstance(raw, dict) else (None, raw)
    if kind not in (None, "text", "input_text", "output_text"):
        raise ValueError(f"{place} is of type {kind}, and only text is read")
    if not isinstance(text, str):
        raise ValueError(f"{place} must hold a text, got {type(text).__name__}")
    return parse_text(text, place)


def check_cut(chat: Messages, place: str) -> None:
    """Check that only the last turn, an answer, is marked as cut (`"cut": true`).

    Raises:
        ValueError: another turn is marked as cut, or the mark is not true or false.
    """
    for number, turn in enumerate(chat):
        cut = turn.get("cut")
        if cut is not None and not isinstance(cut, bool):
            raise ValueError(f"{place}: turn {number + 1}: cut must be true or false, got {cut!r}")
        if cut and (number + 1 < len(chat) or turn["role"] != "assistant"):
            raise ValueError(
                f"{place}: turn {number + 1} is cut: only an answer that ends the chat can be"
            )


def texts_in(value: Any) -> Iterator[str]:
    """Yield all texts in a JSON value, stripped, without blank ones; of a turn only its content."""
    stack = [value]  # no recursion, because values may be nested deeper than Python's stack
    while stack:
        item = stack.pop()
        if isinstance(item, str) and item.strip():
            yield item.strip()
        elif isinstance(item, dict):
            content = [item[name] for name in ("content", "value", "text") if name in item]
            stack += content or item.values()
        elif isinstance(item, (list, tuple)):
            stack += item


def all_contained(texts: Iterable[str], others: list[str]) -> bool:
    """Return True if each text is a substring of one of the others."""
    return all(any(text.strip() in other for other in others) for text in texts)
