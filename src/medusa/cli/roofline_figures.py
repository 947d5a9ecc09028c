"""The figures of `medusa roofline`, in the form of the paper's figures 9 to 23.

Drawing needs matplotlib (`pip install 'medusa-decoding[plots]'`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..calibration.drawing import new_figure
from ..hardware.devices import Device
from ..hardware.operators import BATCHES, LENGTHS, ModelShape
from ..hardware.roofline import FAMILIES, Point
from ..hardware.simulator import Acceleration, overhead, speedup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASES = {"prefill": "s", "decoding": "o", "medusa": "^"}
"""Marker of each phase."""
COUNTS = (1, *range(4, 129, 4))
"""Numbers of candidates of the predicted curves."""


def of_kind(points: Sequence[Point], family: str, phase: str) -> list[Point]:
    """Return the points of a family of products in a phase."""
    return [
        point for point in points if (point.setting.family, point.setting.phase) == (family, phase)
    ]


def draw_measured(points: Sequence[Point], device: Device, title: str) -> Figure:
    """Return the measured products below both roofs, as in figures 9 to 20."""
    figure = new_figure(7, 4.6)
    axes = figure.add_subplot()
    for family in FAMILIES:
        colour = None
        for phase, marker in PHASES.items():
            own = of_kind(points, family, phase)
            if own:
                drawn = axes.scatter(
                    [each.intensity for each in own],
                    [each.rate / 1e9 for each in own],
                    marker=marker,
                    s=18,
                    alpha=0.7,
                    color=colour,
                    label=f"{family}, {phase}",
                )
                colour = drawn.get_facecolor()[0]
    ends = [0.3, device.ridge, max([4 * device.ridge, *(each.intensity for each in points)])]
    axes.plot(ends, [device.attainable(each) / 1e9 for each in ends], "k--", linewidth=0.9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7)
    return figure


def draw_predicted(
    shape: ModelShape, device: Device, acceleration: Acceleration, title: str
) -> Figure:
    """Return predicted speedups by candidates, batch and context (figures 21 to 23)."""
    figure = new_figure(14, 4.4)
    one, batches, contexts = figure.subplots(1, 3)
    _curve(one, [acceleration(count) for count in COUNTS], "acceleration rate")
    _curve(one, [overhead(shape, device, 1, count, 1024) for count in COUNTS], "overhead")
    for axes, settings in (
        (one, {"speedup": (1, 1024)}),
        (batches, {f"batch {batch}": (batch, 1024) for batch in BATCHES}),
        (contexts, {f"context {context:,}": (4, context) for context in LENGTHS}),
    ):
        for label, (batch, context) in settings.items():
            found = [speedup(shape, device, batch, n, context, acceleration) for n in COUNTS]
            _curve(axes, found, label)
        axes.axhline(1, color="0.8", linewidth=1)
        axes.set_xlabel("candidates")
        axes.legend(fontsize=7)
    one.set_title("batch 1, context 1,024", fontsize=9)
    batches.set_title("predicted speedup, context 1,024", fontsize=9)
    contexts.set_title("predicted speedup, batch 4", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def _curve(axes: Axes, values: Sequence[float], label: str) -> None:
    axes.plot(COUNTS, values, label=label, linewidth=1.2)
