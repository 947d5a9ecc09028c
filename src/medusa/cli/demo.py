"""`medusa demo`: a model with and without Medusa, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .options import length_option
from .parameters import argument, option


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of the demo."""

    model: Literal["demo", "smollm2"] = argument(
        "demo is the model inside this package; smollm2 is SmolLM2-135M-Instruct, a real model, "
        "which is fetched when first used",
        "[MODEL]",
        default="demo",
    )

    json: Path | None = option(
        "File to write the figures to; by default they are only shown", default=None, metavar="FILE"
    )
    max_new_tokens: int = length_option()
    per_category: int = option(
        "Number of requests of each category (demo only)", default=1, min=1, max=1000
    )
    threads: int | None = option(
        "Number of CPU threads; by default torch's choice", default=None, min=1, max=1024
    )


def demo(options: DemoOptions) -> None:
    """Show a model's answers with and without Medusa, side by side.

    Without MODEL nothing is downloaded.
    """
    from .side_by_side import run

    run(options)
