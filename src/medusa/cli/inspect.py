"""`medusa inspect`: say what a folder of heads holds."""

from __future__ import annotations

from dataclasses import dataclass

from .options import HubOptions
from .parameters import argument


@dataclass(frozen=True, kw_only=True)
class InspectOptions(HubOptions):
    """Options of `medusa inspect`."""

    heads: str = argument("Folder or hub id of heads in any format, 'demo' or 'smollm2'", "PATH")


def inspect(options: InspectOptions) -> None:
    """Show what heads are made of, what they fit, and what is odd about them."""
    from .heads_view import show_description

    show_description(options.heads, options.hub_arguments)
