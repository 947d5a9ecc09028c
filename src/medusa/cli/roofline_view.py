"""What `medusa roofline` prints, draws and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from .. import files
from ..calibration.drawing import check_library, save
from ..calibration.plan import traced_acceleration
from ..hardware.devices import Device, find_device, measured_device
from ..hardware.operators import (
    BATCHES,
    CANDIDATES,
    LENGTHS,
    LLAMA,
    ModelShape,
    intensity_table,
)
from ..hardware.provenance import provenance, this_device
from ..hardware.roofline import FAMILIES, Point, fits, measure, settings
from ..hardware.simulator import Acceleration, best_candidates, paper_acceleration, speedup
from ..training.progress import progress
from .models import HEADS, base_folder
from .progress import say
from .roofline_figures import PHASES, draw_measured, draw_predicted, of_kind
from .streams import console, note
from .tree_view import read_trace

SETTINGS = [(1, 1024), *((batch, 1024) for batch in BATCHES[1:]), *((4, s) for s in LENGTHS)]
"""Batches and contexts of the paper's figures 21 to 23."""
LARGEST_TREE = 256
"""Maximum number of candidates that is looked at."""


def show_table(number: int, file: Path | None) -> None:
    """Print table 6, 7 or 8 of the paper, and write it to a file."""
    found = intensity_table(number)
    what = "context" if number == 6 else "batch"
    title = {
        6: "attention at a batch of 16",
        7: "attention at a context of 1,024",
        8: "linear layers (up, gate, down)",
    }[number]
    shown = Table(
        *(what, *(str(count) for count in CANDIDATES)),
        title=f"Table {number}: operational intensity of {title}, by candidates; LLaMA-33B",
    )
    for row, intensities in found.items():
        shown.add_row(str(row), *(f"{each:.2f}" for each in intensities))
    console().print(shown)
    write(file, {"columns": list(CANDIDATES), "rows": {str(row): found[row] for row in found}})


def show_speedups(
    model: str, device: str, dtype: str, trace: str | None, file: Path | None, png: Path | None
) -> None:
    """Print and draw the speedups that a device's roof allows, by batch and context.

    Args:
        trace: heads whose accuracies give the acceleration rate; None takes the paper's logarithm.
    """
    check_outputs(file, png)
    acceleration: Acceleration = (
        paper_acceleration
        if trace is None
        else traced_acceleration(read_trace(trace).accuracies, LARGEST_TREE)
    )
    rate = "1 + 0.477 ln n" if trace is None else f"that of {trace}"
    shape, place = find_shape(model), find_device(device, getattr(torch, dtype))
    screen = console()
    screen.print(
        f"{place.name}: {place.bandwidth / 1e9:,.0f} GB/s, {place.peak / 1e12:,.1f} TFLOP/s; "
        f"products with fewer than {place.ridge:.0f} operations a byte are bound by memory",
        highlight=False,
    )
    shown = Table(
        *("batch", "context", *(str(count) for count in CANDIDATES), "best"),
        title=f"Predicted speedup by candidates, {model} (acceleration rate: {rate})",
    )
    rows = []
    for batch, context in SETTINGS:
        at = (shape, place, batch)
        speedups = [speedup(*at, count, context, acceleration) for count in CANDIDATES]
        counts = range(1, LARGEST_TREE + 1)
        best, most = best_candidates(*at, context, counts, acceleration)
        cells = (f"{each:.2f}" for each in speedups)
        shown.add_row(str(batch), f"{context:,}", *cells, f"{best} ({most:.2f})")
        rows.append({"batch": batch, "context": context, "speedups": speedups, "best": best})
    screen.print(shown)
    described = {"model": model, "device": place.name, "columns": list(CANDIDATES)}
    write(file, {"provenance": provenance(), **described, "acceleration": rate, "rows": rows})
    if png is not None:
        save(draw_predicted(shape, place, acceleration, f"{model} on {place.name}"), png, "png")
        note(f"drawn in {png}")


def show_measured(model: str, dtype: str, file: Path | None, png: Path | None) -> None:
    """Measure a model's products here; print medians, and draw all of them."""
    check_outputs(file, png)
    shape, kind = find_shape(model), getattr(torch, dtype)
    device = measured_device(kind)
    place = this_device()
    grid = list(settings(BATCHES))
    chosen = [each for each in grid if fits(each, shape, device)]
    points, screen = [], console()
    with progress("measuring", len(chosen), "products", partial(say, screen)) as advance:
        for each in chosen:
            points.append(measure(each, shape, place, kind))
            advance(1)
    screen.print(points_table(points, device, f"{model}, {dtype}"))
    note(f"{len(grid) - len(chosen)} of {len(grid)} products are too large for this machine")
    if png is not None:
        save(draw_measured(points, device, f"{model} on {device.name}, {dtype}"), png, "png")
        note(f"drawn in {png}")
    described = {"model": model, "dtype": dtype, "bandwidth": device.bandwidth}
    figures = {**described, "peak": device.peak, "points": [each.to_json() for each in points]}
    write(file, {"provenance": provenance(), **figures})


def check_outputs(file: Path | None, png: Path | None) -> None:
    """Check that the results can be written and drawn, before anything is measured."""
    for each in (file, png):
        if each is not None:
            files.check_writable(each)
    if png is not None:
        check_library()


def points_table(points: Sequence[Point], device: Device, title: str) -> Table:
    """Return a table of the families and phases: rates beside what the roof allows."""
    shown = Table(
        *("products", "phase", "measured", "operations a byte", "GFLOP/s", "share of the roof"),
        title=f"{title}: {device.bandwidth / 1e9:.1f} GB/s, {device.peak / 1e9:,.0f} GFLOP/s",
    )
    for family in FAMILIES:
        for phase in PHASES:
            own = of_kind(points, family, phase)
            if not own:
                continue
            shares = sorted(each.rate / device.attainable(each.intensity) for each in own)
            shown.add_row(
                *(family, phase, str(len(own))),
                _range([each.intensity for each in own]),
                _range([each.rate / 1e9 for each in own]),
                f"{shares[len(shares) // 2]:.0%}",
            )
    return shown


def _range(values: Sequence[float]) -> str:
    return f"{min(values):,.1f} to {max(values):,.1f}"


def find_shape(name: str) -> ModelShape:
    """Return the shape of a LLaMA by its size, of "demo" or "smollm2", or of a config.json.

    Raises:
        FileNotFoundError: there is no such file or size.
        ValueError: the file is no configuration of a model.
    """
    if name.lower() in LLAMA:
        return LLAMA[name.lower()]
    path = Path(base_folder(name))
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} is neither {', '.join([*LLAMA, *HEADS])} nor a config.json or a folder with "
            "one"
        )
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object")
    return ModelShape.of(content)


def write(file: Path | None, content: Any) -> None:
    """Write figures to a file, if there is one."""
    if file is not None:
        files.write_json(file, content, indent=1)
        note(f"written to {file}")
