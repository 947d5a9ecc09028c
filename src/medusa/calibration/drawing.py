"""Drawings of trees as in the paper's figure 6: one row for each depth, likely nodes darker.

Drawing needs matplotlib (`pip install 'medusa-decoding[plots]'`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..core.tree import CandidateTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "viridis_r"


def places(tree: CandidateTree, frequencies: Sequence[float]) -> list[float]:
    """Return the horizontal position of each node [N].

    Leaves stand side by side, parents above their first child. Children are sorted by frequency,
    the most frequent first.
    """
    at = [0.0] * len(tree)
    taken = 0

    def place(node: int) -> float:
        nonlocal taken
        children = sorted(tree.children[node], key=lambda child: -frequencies[child])
        below = [place(child) for child in children]
        if below:
            at[node] = below[0]
        else:
            at[node], taken = float(taken), taken + 1
        return at[node]

    place(0)
    return at


def check_library() -> None:
    """Check that figures can be drawn.

    Raises:
        ImportError: matplotlib is not installed, or does not work.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise ImportError(
            "pictures need matplotlib: pip install 'medusa-decoding[plots]'"
        ) from None
    except Exception as error:  # such as a broken configuration file, or a build for another numpy
        raise ImportError(
            f"pictures need matplotlib, which cannot be loaded here: {error}"
        ) from error


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; width and height are in inches.

    Raises:
        ImportError: matplotlib is not installed, or does not work.
    """
    check_library()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="tight")


def _scale() -> Any:
    """Return a colour scale from 0 to 1 on which small shares differ visibly, too."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.4, vmin=0, vmax=1)


def draw_tree(tree: CandidateTree, frequencies: Sequence[float], title: str = "") -> Figure:
    """Return a drawing of a tree whose nodes are coloured by how often they are accepted.

    Args:
        frequencies: [N] share of steps that accept each node; the root's is 1.
        title: title of the drawing; by default the number of nodes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    across, depths = places(tree, frequencies), tree.depth.tolist()
    leaves = 1 + max(across)
    figure = new_figure(min(30.0, max(5.0, 0.45 * leaves + 2)), 1.1 * (tree.max_depth + 1) + 1)
    axes = figure.add_subplot()
    for node, parent in enumerate(tree.parent.tolist()):
        if node:
            ends = [across[parent], across[node]], [depths[parent], depths[node]]
            axes.plot(*ends, color="0.7", linewidth=0.5 + 3 * frequencies[node], zorder=1)
    dots = axes.scatter(
        across,
        depths,
        c=frequencies,
        cmap=COLOURS,
        norm=_scale(),
        s=320,
        edgecolors="0.3",
        linewidths=0.6,
        zorder=2,
    )
    for node, path in enumerate(tree.paths):
        _label_node(axes, across[node], depths[node], path, dark=frequencies[node] > 0.2)
    _finish_axes(axes, tree.max_depth)
    axes.set_title(title or f"{len(tree)} nodes; a node's number is its rank", fontsize=10)
    figure.colorbar(dots, ax=axes, label="share of steps that accept the node")
    return figure


def _label_node(axes: Any, x: float, y: float, path: Sequence[int], dark: bool) -> None:
    """Write a node's rank on it; `dark` says that its colour is dark."""
    axes.text(
        x,
        y,
        str(path[-1]) if path else "root",
        ha="center",
        va="center",
        fontsize=8 if path else 6,
        color="white" if dark else "black",
        zorder=3,
    )


def _finish_axes(axes: Any, max_depth: int) -> None:
    """Put the root on top and name the rows after the heads."""
    axes.invert_yaxis()
    axes.margins(x=0.02)
    rows = ["base", *(f"head {head + 1}" for head in range(max_depth))]
    axes.set_yticks(range(max_depth + 1), rows)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)


def save(figure: Figure, file: Path, kind: str = "png") -> None:
    """Write a figure atomically in the format `kind`, such as "png" or "svg".

    Raises:
        OSError: the file cannot be written.
    """
    with files.replacing(file) as beside:
        figure.savefig(beside, dpi=150, format=kind)
