"""`medusa generate`: one prompt, one answer."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..loading import MedusaModel
from .answer import Sampling, encode_chat, note, pieces, show, start, summary
from .streams import as_text


def run(
    model: MedusaModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    *,
    raw: bool = False,
    stats: bool = False,
) -> None:
    """Stream the answer and a newline to stdout; with `stats`, a line about it to stderr.

    Raises:
        ValueError: the prompt is empty or longer than the model holds.
    """
    session = start(model, tokenizer, encode(tokenizer, prompt, raw), sampling)
    for text, accepted in pieces(session, tokenizer):
        show(text, accepted)
    show("\n", False)
    if stats:
        note(summary(session.stats))


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """Return the prompt: the one given, else the file's or standard input's without the end of its
    last line.

    Raises:
        OSError: the file cannot be read.
        ValueError: the text is empty or not UTF-8.
    """
    if prompt is not None:
        text = as_text(prompt, "--prompt")
    elif file is not None and str(file) != "-":
        text = as_text(
            file.read_text(encoding="utf-8", errors="surrogateescape"), str(file)
        ).removesuffix("\n")
    else:
        if sys.stdin.isatty():
            note("the prompt, please; Ctrl-D on a line of its own ends it")
        text = as_text(sys.stdin.read(), "standard input").removesuffix("\n")
    if not text:
        raise ValueError("the prompt is empty: pass --prompt, --file or text on standard input")
    return text


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, raw: bool) -> Tensor:
    """Return token ids [1, P] of a prompt: a user's message where there is a chat template, unless
    `raw`.
    """
    if tokenizer.chat_template is not None and not raw:
        return encode_chat(tokenizer, [{"role": "user", "content": prompt}])
    return tokenizer(prompt, return_tensors="pt")["input_ids"]
