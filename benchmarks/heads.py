"""`python -m benchmarks.heads`: lm_heads of their own or the base model's, and how many residual
layers.

Heads of each kind learn from the same answers of the embedded model, and decode the same held-out
requests.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from medusa import demo
from medusa.calibration.report import measure
from medusa.core.tree import CandidateTree
from medusa.demo.tasks import CATEGORIES, make_task
from medusa.evaluation.prompts import held_out
from medusa.evaluation.report import WIDTH, results_folder, write_json
from medusa.hardware.provenance import provenance
from medusa.loading import MedusaModel
from medusa.training import Example, evaluate_heads, train_heads
from tools.demo_model.backbone import answers
from tools.demo_model.recipe import EVEN
from tools.demo_model.stream import varied_tasks
from tools.demo_model.train import HEADS, NODES, example

KINDS = {
    "own lm_heads, 1 layer": (True, 1),
    "shared lm_head, 1 layer": (False, 1),
    "shared lm_head, 3 layers": (False, 3),
}
"""Each kind of heads: own_lm_head, num_layers."""
FIRST_SEED = 40_000_000
"""Tasks from here on are this benchmark's own."""


def compare(
    base: Any,
    own_lm_head: bool,
    num_layers: int,
    texts: dict[str, list[Example]],
    prompts: Sequence[list[int]],
) -> dict[str, Any]:
    """Train heads on `texts["train"]`, judge them on `texts["test"]`, and decode the prompts with
    them.
    """
    torch.manual_seed(0)
    model = MedusaModel.from_base(base, num_heads=5, num_layers=num_layers, own_lm_head=own_lm_head)
    train_heads(model, texts["train"], HEADS)
    accuracy = evaluate_heads(model, texts["test"]).accuracy
    tree = CandidateTree.from_accuracies(accuracy, NODES)
    measured = measure(model, prompts, tree, {"max_new_tokens": 256, "do_sample": False})
    return {
        "parameters": sum(parameter.numel() for parameter in model.heads.parameters()),
        "accuracy": accuracy,
        "acceleration_rate": measured.acceleration_rate,
        "speedup": measured.speedup,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=2400, help="to learn from")
    parser.add_argument(
        "--per-category", type=int, default=4, help="held-out prompts of each category to decode"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=results_folder, default="benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = demo.load()
    varied = varied_tasks(EVEN, tokenizer, random.Random(2), FIRST_SEED)
    tasks = {
        "train": list(itertools.islice(varied, options.answers)),
        "test": [make_task(name, FIRST_SEED + seed) for name in CATEGORIES for seed in range(20)],
    }
    texts = {
        split: [
            example(tokenizer, task.prompt, text)
            for task, text in zip(part, answers(model.base, tokenizer, part), strict=True)
        ]
        for split, part in tasks.items()
    }
    prompts = [prompt.ids[0].tolist() for prompt in held_out(tokenizer, options.per_category)]
    report: dict[str, Any] = {"provenance": provenance(), "answers": options.answers, "kinds": {}}
    shown = Table(
        "heads",
        "parameters",
        *(f"top-1, head {k}" for k in range(1, 6)),
        "tokens / step",
        "vs plain",
    )
    for name, (own_lm_head, num_layers) in KINDS.items():
        report["kinds"][name] = found = compare(model.base, own_lm_head, num_layers, texts, prompts)
        rates = f"{found['acceleration_rate']:.2f}", f"{found['speedup']:.2f}"
        top = (f"{row[0]:.1%}" for row in found["accuracy"])
        shown.add_row(name, f"{found['parameters'] / 1e6:.1f}M", *top, *rates)
    console = Console(width=WIDTH)
    console.print(shown)
    console.print(f"written to {write_json(options.output, report, 'heads')}")


if __name__ == "__main__":
    main()
