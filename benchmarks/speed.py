"""`python -m benchmarks.speed`: Medusa against all baselines on the embedded model.

The embedded model and its inflated version answer held-out prompts, greedily and sampled.
"""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console
from rich.table import Table

from medusa import demo
from medusa.cli.bench_run import tables_of
from medusa.core.tree import CandidateTree
from medusa.evaluation import METHODS, Bench, BenchSettings, run_bench
from medusa.evaluation.bench_report import report as figures_of
from medusa.evaluation.prompts import task_questions
from medusa.evaluation.records import QuestionRecord

from .harness import WIDE, argument_parser, new_report, parse_arguments, write_with_tables
from .models import EMBEDDED_MODELS

NODES = {"embedded": 8, "inflated": 8}
"""Default tree size of each model; on a CPU a larger model leaves less room for nodes."""
REPEATS = {"embedded": 3, "inflated": 1}
"""Default number of runs of each prompt and method; the inflated model's steps vary little."""


def compare_methods(
    name: str, temperature: float, options: argparse.Namespace
) -> tuple[list[QuestionRecord], int]:
    """Compare all methods on one model at one temperature.

    Returns:
        The records of all answers, and the number of nodes of the tree.
    """
    model, tokenizer = demo.load(
        inflate=EMBEDDED_MODELS[name], compiled=options.compiled, all_heads=True
    )
    nodes = options.nodes or NODES[name]
    model.tree = CandidateTree.from_accuracies(model.calibration.accuracies, nodes)
    rounds = options.repeats or REPEATS[name]
    bench = Bench(
        *(model, tokenizer, METHODS), BenchSettings(options.max_new_tokens, temperature, rounds)
    )
    return run_bench(bench, task_questions(options.per_category)), nodes


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
            records, nodes = compare_methods(name, temperature, options)
            found = figures_of(records)
            report["results"][f"{name}, T={temperature:g}"] = {"nodes": nodes, "figures": found}
            title = f"{name}, temperature {temperature:g}, tree of {nodes} nodes"
            new = tables_of(found, title)
            tables += new
            console.print(*new)
    kind = "compiled" if options.compiled else ""
    errors.print(f"written to {write_with_tables(options.output, report, tables, kind)}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
