"""What `medusa plan` prints and writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from ..calibration.plan import HeadsShape, Plan, best, plans
from ..core.schedule import UNCALIBRATED
from ..hardware.devices import Device, find_device
from .plan import PlanOptions
from .roofline_view import find_shape, write
from .streams import console
from .tree_view import read_tree

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Sizes of trees that are printed, besides the best one."""


def show(options: PlanOptions) -> None:
    """Print the plan of each size of tree, and the best one.

    Raises:
        ValueError: there is no such device, or the accuracies are of fewer heads.
        FileNotFoundError: there is no such model or file of accuracies.
    """
    shape = find_shape(options.model)
    device = find_device(options.device, getattr(torch, options.dtype))
    accuracies = read_accuracies(options.trace)
    count = options.heads or len(accuracies)
    if count > len(accuracies):
        raise ValueError(
            f"--heads {count}: the accuracies are of {len(accuracies)} heads; take at most so many"
        )
    heads = HeadsShape(count, options.layers, options.own_lm_head)
    found = plans(
        *(shape, device, accuracies[:count], heads),
        *(options.batch, options.context, options.max_nodes),
    )
    chosen = best(found)
    screen = console()
    screen.print(table(found, chosen, device, options))
    for sentence in sentences(chosen, device):
        screen.print(sentence, highlight=False)
    write(
        options.json,
        {
            "device": device.name,
            "model": options.model,
            "batch": options.batch,
            "context": options.context,
            "best": figures(chosen) | {"paths": [list(path) for path in chosen.tree.paths[1:]]},
            "sizes": [figures(each) for each in found],
        },
    )


def read_accuracies(trace: Path | None) -> list[list[float]]:
    """Return accuracies [K][R] of heads or of a tree file; by default the published ones.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it holds no accuracies.
    """
    if trace is None:
        return [list(each) for each in UNCALIBRATED.accuracies]
    if not trace.exists():
        raise FileNotFoundError(f"--trace {trace}: no such file or folder")
    _, calibration = read_tree(str(trace))
    if calibration is UNCALIBRATED:
        raise ValueError(f"--trace {trace} holds no accuracies: medusa calibrate measures them")
    return [list(each) for each in calibration.accuracies]


def figures(plan: Plan) -> dict[str, float]:
    """Return a plan's figures by name."""
    return {
        "nodes": len(plan.tree),
        "tokens_per_step": plan.tokens_per_step,
        "overhead": plan.overhead,
        "speedup": plan.speedup,
        "plain_ms": plan.plain_ms,
        "step_ms": plan.step_ms,
        "memory_bytes": plan.memory,
    }


def table(found: Sequence[Plan], chosen: Plan, device: Device, options: PlanOptions) -> Table:
    """Return a table of some sizes and the best one."""
    shown = Table(
        *("nodes", "depth", "tokens / step", "step ms", "overhead", "speedup"),
        title=f"{options.model} on {device.name}, batch {options.batch}, "
        f"{options.context:,} tokens of context",
    )
    for plan in found:
        if len(plan.tree) in SIZES or plan is chosen:
            shown.add_row(
                f"{len(plan.tree)}{' (best)' if plan is chosen else ''}",
                str(plan.tree.max_depth),
                f"{plan.tokens_per_step:.2f}",
                f"{plan.step_ms:.2f}",
                f"{plan.overhead:.2f}",
                f"{plan.speedup:.2f}",
            )
    return shown


def sentences(plan: Plan, device: Device) -> list[str]:
    """Return what the best plan means, in words."""
    memory = f"{plan.memory / 1e9:.1f} of {device.memory / 1e9:.0f} GB"
    fits = "" if plan.memory < device.memory else ": more than the device has"
    said = [f"Memory: {memory} for weights, heads, keys and values{fits}."]
    if len(plan.tree) == 1:
        return [*said, "No tree is faster than plain decoding here."]
    return [
        *said,
        f"Break-even: this tree pays from {plan.overhead:.2f} tokens a step on; "
        f"{plan.tokens_per_step:.2f} are expected.",
        "The times are the least that memory and matrix units allow, so the speedup is an upper "
        "limit.",
    ]
