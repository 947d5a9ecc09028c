"""`medusa generate`: answer one prompt."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from .options import AnswerOptions, ModelOptions
from .parameters import option
from .streams import as_text, note


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Options that name the prompt and how it is answered.

    Raises:
        typer.BadParameter: there are two prompts.
    """

    prompt: str | None = option(
        "The prompt; by default standard input", "--prompt", "-p", default=None
    )
    file: Path | None = option(
        "File with the prompt, in UTF-8; - is standard input", "--file", "-f", default=None
    )
    raw: bool = option(
        "Continue the prompt itself, without a chat template", "--raw", default=False
    )
    stats: bool = option(
        "Print the numbers of tokens and steps and the speed to stderr afterwards",
        "--stats",
        default=False,
    )

    def __post_init__(self) -> None:
        if self.prompt is not None and self.file is not None:
            raise typer.BadParameter("--prompt and --file both give the prompt: leave one out")

    def read(self) -> str:
        """Return the prompt; the newline at the end of a file or of standard input is left out.

        Raises:
            OSError: the file cannot be read.
            ValueError: the text is empty or not UTF-8.
        """
        if self.prompt is not None:
            text = as_text(self.prompt, "--prompt")
        elif self.file is not None and str(self.file) != "-":
            content = self.file.read_text(encoding="utf-8", errors="surrogateescape")
            text = as_text(content, str(self.file)).removesuffix("\n")
        else:
            if sys.stdin.isatty():
                note("type the prompt; Ctrl-D on a line of its own ends it")
            text = as_text(sys.stdin.read(), "standard input").removesuffix("\n")
        if not text:
            raise ValueError("the prompt is empty: pass --prompt, --file or text on standard input")
        return text


def generate(prompt: PromptOptions, answer: AnswerOptions, model: ModelOptions) -> None:
    """Answer one prompt and stream the text; accepted candidates are green on a terminal."""
    text = prompt.read()
    from ..text import encode_text, stream_text
    from .answer import show, start, summary
    from .models import load

    medusa, tokenizer = load(model)
    session = start(medusa, tokenizer, encode_text(tokenizer, text, prompt.raw), answer)
    for piece, accepted in stream_text(session.events(), tokenizer):
        show(piece, accepted)
    show("\n", False)
    if prompt.stats:
        note(summary(session.stats))
