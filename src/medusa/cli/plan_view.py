"""What `medusa plan` prints and writes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from rich.table import Table

from ..calibration.plan import HeadsShape, Plan, best, plans
from ..core.schedule import UNCALIBRATED, Calibration
from ..hardware.devices import Device, find_device
from .plan import PlanOptions
from .roofline_view import find_shape, write
from .streams import console
from .tree_view import read_trace

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
    calibration = UNCALIBRATED if options.trace is None else read_trace(options.trace)
    accuracies = [list(each) for each in calibration.accuracies]
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
    chosen, measured = best(found), measured_here(calibration, device, options)
    screen = console()
    screen.print(table(found, chosen, measured, device, options))
    for sentence in (*sentences(chosen, device), *errors(found, measured)):
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
            "measured_ms": {str(nodes): measured[nodes] for nodes in sorted(measured)},
        },
    )


def measured_here(
    calibration: Calibration, device: Device, options: PlanOptions
) -> dict[int, float]:
    """Return measured milliseconds of a step by number of nodes, where they can be compared.

    That is the case if the calibration was made on the device, with the batch and the context of
    the plan.
    """
    made = calibration.made
    contexts = made.get("contexts") or [0]
    same = made.get("device") == device.name and made.get("batch_size", 1) == options.batch
    near = min(contexts) <= options.context <= 2 * max(contexts)
    return dict(calibration.latency) if same and near else {}


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


def table(
    found: Sequence[Plan],
    chosen: Plan,
    measured: Mapping[int, float],
    device: Device,
    options: PlanOptions,
) -> Table:
    """Return a table of some sizes and the best one; measured times stand beside predicted ones."""
    beside = ("measured ms", "measured overhead") if measured else ()
    shown = Table(
        *("nodes", "depth", "tokens / step", "step ms", "overhead", "speedup", *beside),
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
                *measured_cells(len(plan.tree), measured),
            )
    return shown


def measured_cells(nodes: int, measured: Mapping[int, float]) -> list[str]:
    """Return the measured time and overhead of a size as texts; empty where it was not timed."""
    if nodes not in measured:
        return []
    return [f"{measured[nodes]:.2f}", f"{measured[nodes] / measured[1]:.2f}"]


def errors(found: Sequence[Plan], measured: Mapping[int, float]) -> list[str]:
    """Return how far the predicted times are from measured ones, in words."""
    timed = [plan for plan in found if len(plan.tree) in measured]
    if not timed or not measured:
        return []
    times = [measured[len(plan.tree)] / plan.step_ms for plan in timed]
    overheads = [
        plan.overhead / (measured[len(plan.tree)] / measured[1])
        for plan in timed
        if len(plan.tree) > 1
    ]
    said = (
        f"A calibration measured {len(timed)} of these sizes on this device: steps took "
        f"{statistics.median(times):.2f} times as long as predicted (median)"
    )
    if not overheads:
        return [f"{said}."]
    return [
        f"{said}, and predicted overheads are {min(overheads):.2f} to {max(overheads):.2f} times "
        "the measured ones."
    ]


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
