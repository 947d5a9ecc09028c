"""Prompts to calibrate on: from files as they lie about, and hub datasets."""

from __future__ import annotations

import itertools

from transformers import PreTrainedTokenizerBase

from .chats import encode_prompt
from .fields import Messages, read_prompt
from .records import read_records
from .template import choose_template

MOST = 5000
"""Records that are read of a source."""


def read_prompts(source: str) -> list[Messages]:
    """Return the prompts of a file, a folder, or a dataset on the hub (its `train` split).

    Text files hold a prompt a line. Records are read as in training. Of a chat everything before
    the last answer is the prompt, of `turns`, a list of questions, the first.

    Raises:
        FileNotFoundError: there is no such file, and it is no dataset's name.
        ValueError: the source is empty, or a record is malformed or holds no prompt; says what was
            found.
        ImportError: a dataset is named, and the library `datasets` is not installed.
    """
    return [read_prompt(record) for record in itertools.islice(read_records(source), MOST)]


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Return token ids of a prompt, in the tokenizer's chat template where it has one."""
    return encode_prompt(tokenizer, messages, choose_template(tokenizer))
