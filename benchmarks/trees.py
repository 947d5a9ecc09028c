"""`python -m benchmarks.trees`: figure 4 on the embedded model, dense against optimised trees.

Every tree is replayed on recorded answers, and its speed predicted from measured latencies; some
are decoded and timed. Predictions and outcomes stand side by side in the results.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from medusa import demo
from medusa.calibration.choice import choose, predictions
from medusa.calibration.drawing import check_library, save
from medusa.calibration.figures import Point, draw_trees, replayed, trees
from medusa.calibration.latency import SIZES, measure_latency, usual_contexts
from medusa.calibration.recording import record
from medusa.calibration.report import measure
from medusa.calibration.search import joint_tree
from medusa.evaluation.prompts import calibration_prompts
from medusa.evaluation.report import results_folder, write_json
from medusa.hardware.provenance import provenance

from .speed import INFLATED_WIDTH

BUDGETS = {
    "embedded": (2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64),
    "inflated": (2, 4, 6, 8, 12, 16, 24, 32),
}
"""Sizes of joint trees that are decoded."""
ARGUMENTS: dict[str, Any] = {"max_new_tokens": 256, "do_sample": False}


def study(
    name: str, options: argparse.Namespace, console: Console
) -> tuple[dict[str, Any], list[Point]]:
    """All points of one model, and what the claims come to."""
    model, tokenizer = demo.load(
        inflate=INFLATED_WIDTH if name == "inflated" else None, all_heads=True
    )
    ids = calibration_prompts(tokenizer, options.prompts + options.decoded)
    recorded, others = ids[: options.prompts], ids[options.prompts :]
    recording = record(model, recorded, ARGUMENTS, ranks=32)
    sizes = [*(size for size in SIZES if size <= 128), 192, 256]
    latency = measure_latency(
        model,
        [token for each in recorded for token in each],
        [joint_tree(recording, size) for size in sizes],
        ARGUMENTS,
        contexts=usual_contexts(recorded, recording.lengths),
    )
    every = list(trees(recording, 256, dense=10**6))
    points = replayed(recording, latency, every)
    dense = [tree for kind, tree in every if kind == "dense"]
    spread = [dense[place * len(dense) // options.dense] for place in range(options.dense)]
    chosen = [("joint", joint_tree(recording, size)) for size in BUDGETS[name]]
    chosen += [("dense", tree) for tree in spread if len(tree) <= 64]
    decoded, outcomes = [], []
    for kind, tree in track(chosen, f"{name}: decoding", console=console):
        found = measure(model, others, tree, ARGUMENTS)
        decoded.append(Point(kind, tree, found.acceleration_rate, found.speedup, decoded=True))
        (predicted,) = replayed(recording, latency, [(kind, tree)])
        outcomes.append(
            {
                "kind": kind,
                "nodes": len(tree),
                "predicted_rate": predicted.acceleration_rate,
                "rate": found.acceleration_rate,
                "predicted_speedup": predicted.speedup,
                "speedup": found.speedup,
            }
        )
    best = choose(predictions(recording, latency, 64))
    fastest = max(each.speedup for each in decoded)
    at_best = min(
        (each for each in decoded if each.kind == "joint"),
        key=lambda each: abs(len(each.tree) - len(best.tree)),
    )
    optimised = next(each for each in points if each.kind == "joint" and len(each.tree) == 64)
    claims = {
        "optimised_64_rate": optimised.acceleration_rate,
        "dense_up_to_256_best_rate": max(
            each.acceleration_rate for each in points if each.kind == "dense"
        ),
        "dense_trees": len(dense),
        "chosen_nodes": len(at_best.tree),
        "chosen_speedup": at_best.speedup,
        "best_speedup_of_all_decoded": fastest,
    }
    result = {"claims": claims, "latency": latency.curve(), "decoded": outcomes}
    return result, [*points, *decoded]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--prompts", type=int, default=120, help="prompts to record")
    parser.add_argument(
        "--decoded", type=int, default=12, help="other prompts, to decode with some of the trees"
    )
    parser.add_argument(
        "--dense", type=int, default=30, help="dense trees to choose from for decoding"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=results_folder, default="benchmarks/results")
    parser.add_argument("--figures", type=results_folder, default="docs/figures")
    options = parser.parse_args()
    check_library()
    torch.set_num_threads(options.threads)
    console, errors = Console(width=120), Console(stderr=True)
    made = provenance()
    report: dict[str, Any] = {"provenance": made, "results": {}}
    for name in options.models:
        report["results"][name], points = study(name, options, errors)
        title = f"{name} model, {made['device']}, {options.threads} threads, {made['date']}"
        save(draw_trees(points, title), options.figures / f"trees-{name}.png")
        shown = Table(
            "kind", "nodes", "predicted rate", "rate", "predicted speedup", "speedup", title=name
        )
        for each in report["results"][name]["decoded"]:
            rates = (
                f"{each[key]:.2f}"
                for key in ("predicted_rate", "rate", "predicted_speedup", "speedup")
            )
            shown.add_row(each["kind"], str(each["nodes"]), *rates)
        console.print(shown, report["results"][name]["claims"])
    console.print(f"written to {write_json(options.output, report, 'trees')}")


if __name__ == "__main__":
    main()
