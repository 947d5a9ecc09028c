"""`medusa tree show`: a candidate tree in the terminal, or drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .parameters import argument, option


@dataclass(frozen=True, kw_only=True)
class TreeOptions:
    """Options that name a tree and its drawings."""

    model: str = argument(
        "Heads (folder, hub id or 'demo'), a tree file, or a tree that the paper's authors "
        "published, such as mc_sim_7b_63",
        "MODEL|FILE|TREE",
    )
    png: Path | None = option(
        "File for a drawing as PNG; by default none", default=None, metavar="FILE"
    )
    svg: Path | None = option(
        "File for a drawing as SVG; by default none", default=None, metavar="FILE"
    )


def show(options: TreeOptions) -> None:
    """Print a candidate tree; draw it as in figure 6 of the paper."""
    from .tree_view import print_tree

    drawings = {"png": options.png, "svg": options.svg}
    print_tree(options.model, {kind: file for kind, file in drawings.items() if file is not None})
