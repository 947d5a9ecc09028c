"""`medusa demo`: the embedded model, with and without Medusa."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .options import length_option
from .parameters import option


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of the demo."""

    json: Path | None = option(
        "File to write the figures to; by default they are only shown", default=None, metavar="FILE"
    )
    max_new_tokens: int = length_option()
    per_category: int = option("Number of requests of each category", default=1, min=1, max=1000)
    threads: int | None = option(
        "Number of CPU threads; by default torch's choice", default=None, min=1, max=1024
    )


def demo(options: DemoOptions) -> None:
    """Show the embedded model's answers with and without Medusa, side by side; no download."""
    from .side_by_side import run

    run(options.json, options.max_new_tokens, options.per_category, options.threads)
