"""`medusa convert`: write heads of any format as a native folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .options import HubOptions
from .parameters import argument, option


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(HubOptions):
    """Options of `medusa convert`."""

    source: str = argument(
        "Folder or hub id of heads: the authors', inside a whole model, ModelOpt's, vLLM's or "
        "MLC-LLM's",
        "SRC",
    )
    destination: Path = argument("New folder for the heads", "DST")
    base: str | None = option(
        "Base model of the heads; by default the one that they name", default=None
    )


def convert(options: ConvertOptions) -> None:
    """Write heads of any format as config.json and medusa_lm_head.safetensors."""
    from .heads_view import show_converted

    show_converted(options.source, options.destination, options.base, options.hub_arguments)
