"""`medusa tree show`: a tree in the terminal, or drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from rich.text import Text
from rich.tree import Tree

from .. import files
from ..calibration.drawing import check_library, draw_tree, save
from ..core.schedule import UNCALIBRATED, Calibration
from ..core.tree import CandidateTree
from ..formats import names, tree_file
from ..formats import native as storage
from .models import folder_or_id
from .streams import console


def show(name: str, drawings: Mapping[str, Path]) -> None:
    """Print the tree of `name` (heads, a tree file or 'demo') and draw it to files.

    Args:
        drawings: file of each picture by its format, "png" or "svg".

    Raises:
        ValueError: there is no tree in it.
        ImportError: a drawing is asked for without matplotlib.
        OSError: a drawing's file cannot be written.
    """
    tree, calibration = read(name)
    if drawings:
        check_library()
    for file in drawings.values():
        files.check_writable(file)
    frequencies = _frequencies(tree, calibration)
    device = calibration.made.get("device")
    own = "not timed here: frequencies are the heads' own, from their training"
    nobody = "not calibrated: frequencies are those of the published heads"
    told = f"calibrated on {device}" if device else nobody if calibration == UNCALIBRATED else own
    rate = sum(frequencies)
    screen = console()
    screen.print(
        f"{len(tree)} nodes, {tree.max_depth} heads, {rate:.2f} tokens a step expected; {told}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    screen.print(printed(tree, frequencies, "#" if screen.options.ascii_only else "█"))
    for kind, file in drawings.items():
        title = f"{len(tree)} nodes, {rate:.2f} tokens a step expected; a node's number is its rank"
        save(draw_tree(tree, frequencies, title), file, kind)
        typer.echo(f"drawn in {file}", err=True)


def read(name: str) -> tuple[CandidateTree, Calibration]:
    """The tree that `name` stands for, and what was measured for it."""
    name = folder_or_id(name)
    file = Path(name).expanduser()
    if file.is_file():
        return tree_file.read_tree(file)
    folder = names.find_heads(name)
    stored = None if folder is None else storage.read_tree(folder)
    if stored is None:
        raise ValueError(f"{name} has no {names.TREE}: calibrate it, or give a tree file")
    return stored


def _frequencies(tree: CandidateTree, calibration: Calibration) -> list[float]:
    measured = calibration.made.get("frequencies") or []
    return (
        list(measured) if len(measured) == len(tree) else tree.probabilities(calibration.accuracies)
    )


def printed(tree: CandidateTree, frequencies: Sequence[float], mark: str = "█") -> Tree:
    """Return the tree for a terminal: ranks, how often a node is accepted, and a bar of `mark`s for
    that.

    A terminal too narrow for a bar cuts it; its number stands before it.
    """

    def label(node: int) -> Text:
        path = tree.paths[node]
        name = (f"rank {path[-1]}" if path else "root", "bold")
        bar = (mark * max(1, round(20 * frequencies[node])), "green")
        text = Text.assemble(name, f"  {frequencies[node]:6.1%}  ", bar)
        text.no_wrap, text.overflow = True, "crop"
        return text

    def grow(branch: Tree, node: int) -> None:
        for child in sorted(tree.children[node], key=lambda child: -frequencies[child]):
            grow(branch.add(label(child)), child)

    root = Tree(label(0))
    grow(root, 0)
    return root
