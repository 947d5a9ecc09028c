"""`medusa roofline`: how memory bandwidth and matrix rate limit Medusa (the paper's appendix G)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from .parameters import option


@dataclass(frozen=True, kw_only=True)
class RooflineOptions:
    """Options of `medusa roofline`."""

    table: int | None = option(
        "Print the operational intensities of this table of the paper: 6, 7 or 8; by default the "
        "predicted speedups of --model on --device are printed",
        default=None,
        min=6,
        max=8,
    )
    model: str = option(
        "Shape of the model: 7b, 13b or 33b (LLaMA), demo, smollm2, or a config.json or its folder",
        default="7b",
    )
    device: str = option(
        "Device: A100-80GB-PCIe, A40, A6000, H100, H200, RTX-4090, or 'here', which is measured",
        default="A100-80GB-PCIe",
    )
    measure: bool = option(
        "Measure the products of --model on this machine, over the paper's grid", default=False
    )
    dtype: Literal["float32", "float16", "bfloat16"] = option(
        "Dtype of what is measured on this machine", default="bfloat16"
    )
    trace: str | None = option(
        "Calibrated heads (folder, demo or smollm2) or their medusa_tree.json, whose accuracies "
        "give the tokens a step of the predicted speedups; by default the paper's "
        "1 + 0.477 ln(candidates)",
        default=None,
        metavar="FOLDER|FILE",
    )
    json: Path | None = option("File for the figures as JSON; by default none", default=None)
    png: Path | None = option(
        "File for a figure of the predicted speedups, or of what --measure measured, as PNG; by "
        "default none",
        default=None,
    )


def roofline(options: RooflineOptions) -> None:
    """Show what memory bandwidth and matrix rate allow: intensities, speedups and roofs."""
    if options.table is not None and (options.measure or options.png is not None):
        raise typer.BadParameter("--table prints a table: leave out --measure and --png")
    if options.trace is not None and (options.measure or options.table is not None):
        raise typer.BadParameter("--trace is for predicted speedups: leave out --measure, --table")
    from . import roofline_view as view

    if options.table is not None:
        view.show_table(options.table, options.json)
    elif options.measure:
        view.show_measured(options.model, options.dtype, options.json, options.png)
    else:
        view.show_speedups(
            *(options.model, options.device, options.dtype),
            *(options.trace, options.json, options.png),
        )
