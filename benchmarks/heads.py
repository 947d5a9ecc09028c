"""`python -m benchmarks.heads`: heads with lm_heads of their own, and with the base model's.

Heads of each kind learn from the same answers of the embedded model and decode the same held-out
requests.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from medusa import demo
from medusa.calibration.trial import measure_tree
from medusa.core.tree import CandidateTree
from medusa.demo.tasks import CATEGORIES, make_task
from medusa.evaluation.prompts import question_ids, task_questions
from medusa.loading import MedusaModel
from medusa.training import Example, evaluate_heads, train_heads
from tools.demo_model.backbone import greedy_answers
from tools.demo_model.recipe import EVEN
from tools.demo_model.stream import varied_tasks
from tools.demo_model.train import HEADS_RECIPE, NODES, chat_example

from .harness import WIDE, argument_parser, new_report, parse_arguments, publish

KINDS = {
    "own lm_heads, 1 layer": (True, 1),
    "shared lm_head, 1 layer": (False, 1),
    "shared lm_head, 3 layers": (False, 3),
}
"""Each kind of heads: own_lm_head, num_layers."""
FIRST_SEED = 40_000_000
"""First seed of this benchmark's own tasks."""


def train_and_measure(
    base: Any,
    own_lm_head: bool,
    num_layers: int,
    texts: dict[str, list[Example]],
    prompts: Sequence[list[int]],
) -> dict[str, Any]:
    """Train heads and return their size, accuracy, acceleration rate and speedup.

    Args:
        texts: examples to train on ("train") and to evaluate on ("test").
        prompts: token ids of the requests to decode.
    """
    torch.manual_seed(0)
    model = MedusaModel.from_base(base, num_heads=5, num_layers=num_layers, own_lm_head=own_lm_head)
    train_heads(model, texts["train"], HEADS_RECIPE)
    accuracy = evaluate_heads(model, texts["test"]).accuracy
    tree = CandidateTree.from_accuracies(accuracy, NODES)
    measured = measure_tree(model, prompts, tree, {"max_new_tokens": 256, "do_sample": False})
    return {
        "parameters": sum(parameter.numel() for parameter in model.heads.parameters()),
        "accuracy": accuracy,
        "acceleration_rate": measured.acceleration_rate,
        "speedup": measured.speedup,
    }


def answered_examples(
    base: Any, tokenizer: PreTrainedTokenizerBase, answers: int
) -> dict[str, list[Example]]:
    """Return examples to train on ("train") and to evaluate on ("test"), answered by the model.

    Args:
        answers: number of examples to train on.
    """
    varied = varied_tasks(EVEN, tokenizer, random.Random(2), FIRST_SEED)
    tasks = {
        "train": list(itertools.islice(varied, answers)),
        "test": [make_task(name, FIRST_SEED + seed) for name in CATEGORIES for seed in range(20)],
    }
    return {
        split: [
            chat_example(tokenizer, task.prompt, text)
            for task, text in zip(part, greedy_answers(base, tokenizer, part), strict=True)
        ]
        for split, part in tasks.items()
    }


def heads_table(kinds: dict[str, dict[str, Any]]) -> Table:
    """Return a table with a row for each kind of heads."""
    table = Table(
        "heads",
        "parameters",
        *(f"top-1, head {head}" for head in range(1, 6)),
        "tokens / step",
        "vs plain",
    )
    for name, figures in kinds.items():
        table.add_row(
            name,
            f"{figures['parameters'] / 1e6:.1f}M",
            *(f"{row[0]:.1%}" for row in figures["accuracy"]),
            f"{figures['acceleration_rate']:.2f}",
            f"{figures['speedup']:.2f}",
        )
    return table


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__)
    parser.add_argument("--answers", type=int, default=2400, help="answers to train on")
    parser.add_argument(
        "--per-category", type=int, default=4, help="held-out prompts of each category to decode"
    )
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    model, tokenizer = demo.load()
    texts = answered_examples(model.base, tokenizer, options.answers)
    questions = task_questions(options.per_category)
    prompts = [question_ids(tokenizer, question) for question in questions]
    kinds = {
        name: train_and_measure(model.base, own_lm_head, num_layers, texts, prompts)
        for name, (own_lm_head, num_layers) in KINDS.items()
    }
    report = new_report(answers=options.answers, kinds=kinds)
    publish(options, report, "heads", heads_table(kinds), width=WIDE)


if __name__ == "__main__":
    main()
