"""Names of record fields: which hold a conversation, and which are metadata."""

from __future__ import annotations

from typing import Any

CHATS = ("messages", "conversations", "conversation")
"""Fields that hold a list of turns."""
PROMPTS = ("prompt", "instruction", "question", "query")
"""Fields that hold a prompt, as a text or a list of turns."""
INPUTS = ("input", "context")
"""Fields that hold material for the prompt; it is appended to the prompt after a blank line."""
RESPONSES = ("response", "completion", "output", "answer", "chosen")
"""Fields that hold an answer, as a text or a list of turns."""
SYSTEMS = ("system", "system_prompt")
"""Fields that hold a system message."""
CONVERSATION_FIELDS = (
    *CHATS,
    "turns",
    *PROMPTS,
    *INPUTS,
    *RESPONSES,
    *SYSTEMS,
    "history",
    "text",
    "tools",
)
"""All fields that can hold a part of a conversation. Each of them is read or refused."""
UNSUPPORTED = (
    "functions",
    "documents",
    "chat_template_kwargs",
    *"image images audio audios video videos".split(),
)
"""Fields that would change the conversation and that this library cannot read."""
METADATA = frozenset(
    """id uid uuid guid idx index key hash sha source origin dataset subset split config category
    categories topic domain task type kind tag tags label labels class language languages lang
    locale model models generator author license licence url link date time created timestamp tstamp
    version score scores rating rank difficulty level quality length file
    filename path name metadata meta
    info reference references rejected""".split()
)
"""Fields that describe a record; they are skipped silently."""
METADATA_SUFFIXES = tuple(
    "_id _ids _uuid _score _scores _rating _at _date _time _hash _url _model _source _lang".split()
)
METADATA_PREFIXES = ("score_", "__")


def is_expected(name: Any) -> bool:
    """Return True if a field is part of a conversation or metadata."""
    lower = str(name).lower()
    return (
        name in CONVERSATION_FIELDS
        or lower in METADATA
        or lower.endswith(METADATA_SUFFIXES)
        or lower.startswith(METADATA_PREFIXES)
    )
