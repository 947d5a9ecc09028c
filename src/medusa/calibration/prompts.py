"""Prompts from files as they lie about: text, JSON lines, and JSON, chats and questions, and hub datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
FIELDS = ("prompt", "instruction", "question", "text", "input")
"""Names under which a record's prompt is looked for, besides chats."""
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


def read_prompts(source: str) -> list[Messages]:
    """The prompts of a file, or of a dataset on the hub (its `train` split).

    Text files hold a prompt a line. Records of `.json`, `.jsonl` and datasets hold `messages` (role and content),
    `conversations` (from and value, as ShareGPT has them), `turns`, or one of `FIELDS`. Of a chat everything before the
    last answer is the prompt.

    Raises:
        FileNotFoundError: there is no such file, and it is no dataset's name.
        ValueError: the file holds no prompts; says what was found.
        ImportError: a dataset is named, and the library `datasets` is not installed.
    """
    prompts = [messages for record in _records(source) if (messages := _messages(record, source))]
    if not prompts:
        raise ValueError(f"{source} holds no prompts")
    return prompts


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of a prompt, in the tokenizer's chat template where it has one."""
    if tokenizer.chat_template:
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    else:
        encoded = tokenizer("\n\n".join(message["content"] for message in messages))["input_ids"]
    return list(encoded)


def _records(source: str) -> Iterable[Any]:
    file = Path(source).expanduser()
    if not file.is_file():
        return _dataset(source)
    if file.suffix == ".jsonl":
        return _lines(file)
    if file.suffix == ".json":
        told = json.loads(file.read_text(encoding="utf-8"))
        return told if isinstance(told, list) else [told]
    return [{"prompt": line} for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _lines(file: Path) -> Iterator[Any]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: not JSON ({error})") from None


def _dataset(name: str) -> Iterable[Any]:
    if name.count("/") != 1 or Path(name).suffix:
        raise FileNotFoundError(f"no file {name}: give a .txt, .jsonl or .json file, or a dataset's name (owner/name)")
    try:
        from datasets import load_dataset
    except ImportError:
        raise ImportError("datasets from the hub need the library `datasets`: pip install datasets") from None
    return load_dataset(name, split="train", streaming=True).take(5000)


def _messages(record: Any, source: str) -> Messages:
    """The prompt of a record; nothing for a chat in which nobody asks."""
    if isinstance(record, str):
        return [{"role": "user", "content": record}]
    if not isinstance(record, dict):
        raise ValueError(f"{source}: a record must be an object or a text, got {type(record).__name__}")
    if isinstance(chat := record.get("messages"), list):
        return _asked([{"role": each["role"], "content": each["content"]} for each in chat])
    if isinstance(chat := record.get("conversations"), list):
        return _asked([{"role": ROLES.get(each["from"], "user"), "content": each["value"]} for each in chat])
    if isinstance(turns := record.get("turns"), list) and turns:
        return [{"role": "user", "content": str(turns[0])}]
    for name in FIELDS:
        if isinstance(record.get(name), str) and record[name].strip():
            return [{"role": "user", "content": record[name]}]
    raise ValueError(
        f"{source}: a record has none of messages, conversations, turns, {', '.join(FIELDS)}; it has "
        f"{', '.join(map(str, record)) or 'nothing'}"
    )


def _asked(messages: Messages) -> Messages:
    """A chat up to its last question."""
    while messages and messages[-1]["role"] != "user":
        messages = messages[:-1]
    return messages
