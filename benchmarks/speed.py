"""`python -m benchmarks.speed`: the embedded model and its inflated twin, greedy and sampled,
against all baselines.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from medusa import demo
from medusa.core.tree import CandidateTree
from medusa.evaluation.measure import Comparison, compare
from medusa.evaluation.prompts import held_out
from medusa.evaluation.report import WIDTH, figures, results_folder, table, write
from medusa.hardware.provenance import provenance

INFLATED_WIDTH = 21_600
"""MLP columns of the inflated model: about 100 million parameters at the embedded model's size."""
MODELS: dict[str, int | None] = {"embedded": None, "inflated": INFLATED_WIDTH}
NODES = {"embedded": 8, "inflated": 8}
"""Nodes of each model's tree; on a CPU a larger model leaves less room."""

REPEATS = {"embedded": 3, "inflated": 1}
"""Interleaved runs of each prompt and method; the inflated model's steps are long enough to say the
same each time.
"""


def measure(
    name: str, temperature: float, options: argparse.Namespace, console: Console
) -> tuple[list[Comparison], int]:
    """All comparisons of one model at one temperature, and the tree's node count."""
    model, tokenizer = demo.load(inflate=MODELS[name], compiled=options.compiled, all_heads=True)
    nodes = options.nodes or NODES[name]
    model.tree = CandidateTree.from_accuracies(model.calibration.accuracies, nodes)
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    )
    arguments = {"max_new_tokens": options.max_new_tokens, **sampling}
    prompts = held_out(tokenizer, options.per_category)
    for _ in compare(model, prompts[:2], arguments, repeats=1):
        pass
    runs = compare(model, prompts, arguments, repeats=options.repeats or REPEATS[name])
    label = f"{name}, temperature {temperature:g}"
    return list(track(runs, label, total=len(prompts), console=console)), nodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0, 0.7])
    parser.add_argument(
        "--per-category", type=int, default=10, help="held-out prompts of each category"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument(
        "--repeats", type=int, help="runs of each prompt and method (default: each model's own)"
    )
    parser.add_argument("--nodes", type=int, help="nodes of the tree (default: each model's own)")
    parser.add_argument("--compiled", action="store_true", help="compile this library's steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--output", type=results_folder, default="benchmarks/results", help="folder for the results"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console, errors = Console(width=None if sys.stdout.isatty() else WIDTH), Console(stderr=True)
    report: dict[str, Any] = {
        "provenance": provenance(),
        "compiled": options.compiled,
        "results": {},
    }
    tables: list[Table] = []
    for name in options.models:
        for temperature in options.temperatures:
            comparisons, nodes = measure(name, temperature, options, errors)
            result = {"nodes": nodes, **figures(comparisons, greedy=not temperature)}
            report["results"][f"{name}, T={temperature:g}"] = result
            tables.append(
                table(f"{name}, temperature {temperature:g}, tree of {nodes} nodes", result)
            )
            console.print(tables[-1])
    errors.print(
        "written to "
        f"{write(options.output, report, tables, 'compiled' if options.compiled else '')}"
    )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
