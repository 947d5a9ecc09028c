"""Figures of a calibration: accuracy by head and rank, and the paper's figure 4 for trees.

Drawing needs matplotlib (`pip install 'medusa-decoding[plots]'`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.schedule import overhead
from ..core.tree import CandidateTree
from .drawing import new_figure
from .latency import SIZES, Latency
from .recording import Recording
from .search import dense_trees, joint_tree, marginal_tree, predicted_rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .report import Report

KINDS = {"dense": "0.6", "marginal": "tab:orange", "joint": "tab:blue"}
"""Colour of each kind of tree.

"dense" trees are Cartesian products; "marginal" and "joint" are the best trees of their size by the
heads' marginal accuracies and by the joint probabilities of whole paths.
"""


@dataclass(frozen=True)
class Point:
    """A tree's point in figure 4.

    Attributes:
        kind: a key of `KINDS`.
        tree: the tree.
        acceleration_rate: tokens a step.
        speedup: speedup over plain decoding.
        decoded: True if both figures were measured by decoding; False if the rate was replayed and
            the speedup predicted from step times.
    """

    kind: str
    tree: CandidateTree
    acceleration_rate: float
    speedup: float
    decoded: bool = False


def trees(
    recording: Recording, nodes: int, dense: int = 300, widest: int = 10
) -> Iterable[tuple[str, CandidateTree]]:
    """Yield trees for figure 4, each with its kind.

    Args:
        nodes: maximum number of nodes.
        dense: number of dense trees, chosen at random if there are more.
        widest: maximum number of children of a node in a dense tree.
    """
    every = list(dense_trees(recording.num_heads, nodes, min(widest, recording.credit.shape[2])))
    drawn = random.Random(0).sample(every, min(dense, len(every)))
    yield from (("dense", tree) for tree in sorted(drawn, key=len))
    for size in (size for size in (*SIZES, 192, 256) if 1 < size <= nodes):
        yield "marginal", marginal_tree(recording, size)
        yield "joint", joint_tree(recording, size)


def replayed(
    recording: Recording, latency: Latency, chosen: Iterable[tuple[str, CandidateTree]]
) -> list[Point]:
    """Return a point for each tree, predicted from recorded texts and step times.

    Args:
        chosen: kind and tree.
    """
    curve = latency.curve()
    points = []
    for kind, tree in chosen:
        rate = predicted_rate(recording, tree)
        points.append(Point(kind, tree, rate, rate / overhead(curve, len(tree))))
    return points


def draw_accuracies(report: Report, ranks: int = 10) -> Figure:
    """Return a figure of each head's accuracy: the share of positions with the token in its top i.

    Bands show 95 % intervals.
    """
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    shares, intervals = report.recording.accuracies(), report.intervals(ranks)
    for head, (row, around) in enumerate(zip(shares, intervals, strict=True)):
        places = range(1, len(around) + 1)
        (line,) = axes.plot(
            places, row[: len(around)], marker="o", markersize=4, label=f"head {head + 1}"
        )
        low, high = zip(*around, strict=True)
        axes.fill_between(places, low, high, alpha=0.2, color=line.get_color())
    axes.set(xlabel="i", ylabel="token in the top i", ylim=(0, 1), title="Accuracy of the heads")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def draw_trees(points: Sequence[Point], title: str = "") -> Figure:
    """Return the two panels of figure 4: acceleration rate and speedup by number of nodes."""
    figure = new_figure(12, 4.5)
    left, right = figure.subplots(1, 2)
    for kind, colour in KINDS.items():
        for axes, value in ((left, "acceleration_rate"), (right, "speedup")):
            for decoded in (False, True):
                part = [each for each in points if each.kind == kind and each.decoded == decoded]
                axes.plot(
                    [len(each.tree) for each in part],
                    [getattr(each, value) for each in part],
                    linestyle="" if kind == "dense" or decoded else "-",
                    marker="D" if decoded else "o",
                    markersize=6 if decoded else 3,
                    markerfacecolor="none" if decoded else colour,
                    color=colour,
                    label=f"{kind}, decoded" if decoded and part else kind if part else None,
                )
    left.set(xlabel="nodes", ylabel="tokens a step", title="Acceleration rate")
    right.set(xlabel="nodes", ylabel="speedup over plain decoding", title="Speedup")
    right.axhline(1, color="0.8", linewidth=1)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    return figure
