"""A candidate tree in the terminal, with the frequency of each node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.text import Text
from rich.tree import Tree

from .. import files
from ..calibration.drawing import check_library, draw_tree, save
from ..core.published_trees import CHILDREN
from ..core.schedule import UNCALIBRATED, Calibration
from ..core.tree import CandidateTree
from ..formats import names, native, tree_file
from .models import folder_or_id
from .streams import console, note

BAR = 20
"""Columns of the bar of a node that is always accepted."""


def print_tree(name: str, drawings: Mapping[str, Path]) -> None:
    """Print a tree, and draw it to files.

    Args:
        name: names a tree; see `read_tree`.
        drawings: files by format, "png" or "svg".

    Raises:
        ValueError: `name` has no tree.
        ImportError: there is a drawing to make, and matplotlib is missing.
        OSError: the file of a drawing cannot be written.
    """
    tree, calibration = read_tree(name)
    if drawings:
        check_library()
    for file in drawings.values():
        files.check_writable(file)
    frequencies = _frequencies(tree, calibration)
    tokens = sum(frequencies)  # the expected length of an accepted path, the root included
    screen = console()
    screen.print(
        f"{len(tree)} nodes, {tree.max_depth} heads, {tokens:.2f} tokens a step expected; "
        f"{_basis(calibration)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    screen.print(terminal_tree(tree, frequencies, "#" if screen.options.ascii_only else "█"))
    title = f"{len(tree)} nodes, {tokens:.2f} tokens a step expected; a node's number is its rank"
    for kind, file in drawings.items():
        save(draw_tree(tree, frequencies, title), file, kind)
        note(f"drawn in {file}")


def read_tree(name: str) -> tuple[CandidateTree, Calibration]:
    """Return the tree of heads, of a tree file or of the paper's authors, and its calibration.

    Args:
        name: folder or hub id of heads, "demo", a tree file, or the name of a published tree.

    Raises:
        OSError: there is no such folder or hub id; lists the published trees.
        ValueError: `name` has no tree, or its file is broken.
    """
    name = folder_or_id(name)
    file = Path(name).expanduser()
    if name in CHILDREN and not file.exists():
        return CandidateTree.named(name), UNCALIBRATED
    if file.is_file():
        return tree_file.read_tree(file)
    try:
        folder = names.find_heads(name)
    except OSError as error:
        if names.is_path(name):
            raise
        raise OSError(f"{error}; published trees are {', '.join(CHILDREN)}") from None
    stored = None if folder is None else native.read_tree(folder)
    if stored is None:
        raise ValueError(f"{name} has no {names.TREE}: calibrate it, or give a tree file")
    return stored


def read_trace(trace: str) -> Calibration:
    """Return the calibration that heads ("smollm2" and "demo", too) or a tree file hold.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it holds no accuracies.
    """
    if not Path(folder_or_id(trace)).expanduser().exists():
        raise FileNotFoundError(f"--trace {trace}: no such file or folder")
    _, calibration = read_tree(trace)
    if calibration is UNCALIBRATED:
        raise ValueError(f"--trace {trace} holds no accuracies: medusa calibrate measures them")
    return calibration


def _frequencies(tree: CandidateTree, calibration: Calibration) -> list[float]:
    """Return how often each node is accepted: as measured, else as the accuracies predict."""
    measured = calibration.made.get("frequencies") or []
    return (
        list(measured) if len(measured) == len(tree) else tree.probabilities(calibration.accuracies)
    )


def _basis(calibration: Calibration) -> str:
    """Return what the frequencies are based on."""
    device = calibration.made.get("device")
    if device:
        return f"calibrated on {device}"
    if calibration == UNCALIBRATED:
        return "not calibrated: frequencies are those of the published heads"
    return "not timed here: frequencies are the heads' own, from their training"


def terminal_tree(tree: CandidateTree, frequencies: Sequence[float], mark: str = "█") -> Tree:
    """Return the tree for a terminal: each node's rank, frequency, and a bar of `mark`s.

    A terminal that is too narrow cuts the bars.
    """

    def label(node: int) -> Text:
        path = tree.paths[node]
        name = (f"rank {path[-1]}" if path else "root", "bold")
        bar = (mark * max(1, round(BAR * frequencies[node])), "green")
        text = Text.assemble(name, f"  {frequencies[node]:6.1%}  ", bar)
        text.no_wrap, text.overflow = True, "crop"
        return text

    def grow(branch: Tree, node: int) -> None:
        for child in sorted(tree.children[node], key=lambda child: -frequencies[child]):
            grow(branch.add(label(child)), child)

    root = Tree(label(0))
    grow(root, 0)
    return root
