"""Calibration prompts from files, folders and hub datasets."""

from __future__ import annotations

import itertools

from transformers import PreTrainedTokenizerBase

from .chats import encode_prompt
from .fields import read_prompt
from .records import read_records
from .template import choose_template
from .turns import Messages

MAX_RECORDS = 5000
"""Maximum number of records read from a source."""


def read_prompts(source: str) -> list[Messages]:
    """Return the prompts of a file, a folder, or a hub dataset (its `train` split).

    A text file holds one prompt a line. The prompt of a chat is everything up to the last turn of
    the user; the prompt of `turns`, a list of questions, is the first question.

    Raises:
        FileNotFoundError: `source` is neither a file, a folder nor a dataset id.
        ValueError: the source is empty, or a record is malformed or holds no prompt.
        ImportError: the source is Parquet or a dataset, and the library `datasets` is missing.
    """
    return [read_prompt(record) for record in itertools.islice(read_records(source), MAX_RECORDS)]


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Return the token ids of a prompt, by the tokenizer's chat template if it has one."""
    return encode_prompt(tokenizer, messages, choose_template(tokenizer))
