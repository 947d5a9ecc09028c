"""`medusa generate`: one prompt, one answer."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..pretrained import MedusaModel
from .answer import Sampling, encode_chat, note, pieces, show, start, summary


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
    session = start(model, encode(tokenizer, prompt, raw), sampling)
    for text, accepted in pieces(session, tokenizer):
        show(text, accepted)
    show("\n", False)
    if stats:
        note(summary(session.stats))


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt given, the file's or standard input's; the last line's end is not part of it."""
    if prompt is not None:
        return prompt
    if file is not None and str(file) != "-":
        return file.read_text(encoding="utf-8").removesuffix("\n")
    if sys.stdin.isatty():
        note("the prompt, please; Ctrl-D on a line of its own ends it")
    return sys.stdin.read().removesuffix("\n")


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, raw: bool) -> Tensor:
    """Token ids [1, P] of a prompt: as a user's message where there is a chat template, unless `raw`."""
    if not prompt:
        raise ValueError("the prompt is empty: pass --prompt, --file or text on standard input")
    if tokenizer.chat_template is not None and not raw:
        return encode_chat(tokenizer, [{"role": "user", "content": prompt}])
    return tokenizer(prompt, return_tensors="pt")["input_ids"]
