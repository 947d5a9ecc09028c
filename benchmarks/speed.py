"""`python -m benchmarks.speed`: Medusa against all baselines on the embedded model.

The embedded model and its inflated version answer held-out prompts, greedily and sampled.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from medusa import demo
from medusa.core.tree import CandidateTree
from medusa.evaluation.measure import Comparison, compare
from medusa.evaluation.prompts import held_out
from medusa.evaluation.report import figures, speed_table

from .harness import WIDE, argument_parser, new_report, parse_arguments, write_with_tables
from .models import EMBEDDED_MODELS

NODES = {"embedded": 8, "inflated": 8}
"""Default tree size of each model; on a CPU a larger model leaves less room for nodes."""
REPEATS = {"embedded": 3, "inflated": 1}
"""Default number of runs of each prompt and method; the inflated model's steps vary little."""


def compare_methods(
    name: str, temperature: float, options: argparse.Namespace, console: Console
) -> tuple[list[Comparison], int]:
    """Compare all methods on one model at one temperature.

    Returns:
        The comparisons, and the number of nodes of the tree.
    """
    model, tokenizer = demo.load(
        inflate=EMBEDDED_MODELS[name], compiled=options.compiled, all_heads=True
    )
    nodes = options.nodes or NODES[name]
    model.tree = CandidateTree.from_accuracies(model.calibration.accuracies, nodes)
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    )
    arguments = {"max_new_tokens": options.max_new_tokens, **sampling}
    prompts = held_out(tokenizer, options.per_category)
    for _ in compare(model, prompts[:2], arguments, repeats=1):
        pass  # a warm-up, which does not count
    comparisons = compare(model, prompts, arguments, repeats=options.repeats or REPEATS[name])
    label = f"{name}, temperature {temperature:g}"
    return list(track(comparisons, label, total=len(prompts), console=console)), nodes


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        choices=EMBEDDED_MODELS,
        default=list(EMBEDDED_MODELS),
        help="models to measure (default: both)",
    )
    parser.add_argument(
        "--temperatures",
        nargs="+",
        type=float,
        default=[0.0, 0.7],
        help="sampling temperatures; 0 is greedy (default: 0 0.7)",
    )
    parser.add_argument(
        "--per-category", type=int, default=10, help="held-out prompts of each category"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, help="maximum tokens of an answer (default: 256)"
    )
    parser.add_argument(
        "--repeats", type=int, help="runs of each prompt and method (default: each model's own)"
    )
    parser.add_argument("--nodes", type=int, help="nodes of the tree (default: each model's own)")
    parser.add_argument("--compiled", action="store_true", help="compile this library's steps")
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark; standard output ends with the report as JSON."""
    options = parse_options()
    console, errors = Console(width=None if sys.stdout.isatty() else WIDE), Console(stderr=True)
    report = new_report(compiled=options.compiled, results={})
    tables: list[Table] = []
    for name in options.models:
        for temperature in options.temperatures:
            comparisons, nodes = compare_methods(name, temperature, options, errors)
            result = {"nodes": nodes, **figures(comparisons, greedy=not temperature)}
            report["results"][f"{name}, T={temperature:g}"] = result
            title = f"{name}, temperature {temperature:g}, tree of {nodes} nodes"
            tables.append(speed_table(title, result))
            console.print(tables[-1])
    kind = "compiled" if options.compiled else ""
    errors.print(f"written to {write_with_tables(options.output, report, tables, kind)}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
