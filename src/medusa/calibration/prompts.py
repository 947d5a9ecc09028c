"""Prompts to calibrate on: from files as they lie about, and hub datasets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from ..training.chats import Messages, encode_prompt, read_asked
from ..training.records import read_records

MOST = 5000
"""Records that are read of a source."""


def read_prompts(source: str) -> list[Messages]:
    """The prompts of a file, a folder, or a dataset on the hub (its `train` split).

    Text files hold a prompt a line. Records hold `messages` (role and content), `conversations` (from and value, as
    ShareGPT has them), `turns`, or a prompt under one of the usual names. Of a chat everything before the last answer
    is the prompt, of `turns` the first.

    Raises:
        FileNotFoundError: there is no such file, and it is no dataset's name.
        ValueError: the file holds no prompts; says what was found.
        ImportError: a dataset is named, and the library `datasets` is not installed.
    """
    prompts = list(_prompts(source))
    if not prompts:
        raise ValueError(f"{source} holds no prompts")
    return prompts


def _prompts(source: str) -> Iterator[Messages]:
    for record in itertools.islice(read_records(source), MOST):
        chat = read_asked(record)
        if isinstance(record.content, dict) and "turns" in record.content:
            chat = chat[:1]
        while chat[-1]["role"] != "user":
            chat = chat[:-1]
        yield chat


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of a prompt, in the tokenizer's chat template where it has one."""
    return encode_prompt(tokenizer, messages, tokenizer.chat_template)
