"""`python -m benchmarks.smollm2_ablations`: what SmolLM2's heads gain from data, layers and loss.

Heads are trained by the recipe of `tools/smollm2` with one thing changed at a time, on hidden
states that are computed once, and measured on held-out answers. Five heads are always trained: in
Medusa-1 heads do not influence each other, so that the accuracies of the first three or four are
those of three or four heads. Tokens a step are those that the accuracies give the best tree of 8,
16 and 64 nodes, its heads taken to be independent. Rerun to resume; a variant that has a result is
not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from medusa import MedusaModel
from medusa.core.tree import CandidateTree
from medusa.demo import smollm2
from medusa.files import write_json
from medusa.hardware.timing import timed
from medusa.training import Recipe, Source
from medusa.training.hidden import CachedStates, ExampleStates, cached_states
from medusa.training.medusa1 import evaluate_on_states, train_on_states
from medusa.training.run import read_data
from medusa.training.training_model import TrainingModel

from .harness import (
    ROOT,
    argument_parser,
    device_file,
    new_report,
    parse_arguments,
    publish_for_device,
)

HEADS = 5
KIND = "smollm2-ablations"
"""Name of the results."""
RECIPE = Recipe(**{**Recipe.read(ROOT / "tools/smollm2/heads.yaml"), "num_heads": HEADS})
VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "1 layer": {"num_layers": 1},
    "3 layers": {"num_layers": 3},
    "own lm_head": {"own_lm_head": True},
    "overlap 1": {"overlap": 1.0},
    "all tokens that occur": {"draft_vocab_size": 49_152},
    "learning rate / 3": {"lr": RECIPE.lr / 3},
    "learning rate x 3": {"lr": RECIPE.lr * 3},
    "weight decay 0.3": {"weight_decay": 0.3},
    "batch of 2": {"batch_size": 2, "micro_batch_size": 2},
    "1 epoch": {"epochs": 1},
    "4 epochs": {"epochs": 4},
    "8 epochs": {"epochs": 8},
    "data x 4": {"share": 4.0},
    "data x 4, 1 epoch": {"share": 4.0, "epochs": 1},
    "data x 2": {"share": 2.0},
    "data / 2": {"share": 0.5},
    "data / 4": {"share": 0.25},
}
"""Changes of the recipe, by variant; `share` multiplies the tokens to train on."""
NODES = (8, 16, 64)
RANKS = 10
"""Ranks of which accuracies are measured."""


def train_variant(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train heads and return their accuracies and what trees make of them."""
    torch.set_num_threads(1)  # variants run beside each other
    training, held_out = states(options)
    changes = dict(VARIANTS[name])
    chosen = some(training, int(options.tokens * changes.pop("share", 1.0)))
    recipe = dataclasses.replace(RECIPE, **{"epochs": options.epochs, **changes})
    model = new_model(recipe)
    training_run = timed(partial(train_on_states, model, chosen, recipe, progress=False))
    accuracy = evaluate_on_states(model, held_out, RANKS).accuracy
    return {
        "variant": name,
        "tokens": sum(len(hidden) for _, hidden, _ in chosen),
        "seconds": training_run.seconds,
        "loss": training_run.result[-1],
        "accuracy": accuracy,
        "tokens_per_step": {
            f"{heads} heads": {str(nodes): expected(accuracy[:heads], nodes) for nodes in NODES}
            for heads in range(3, HEADS + 1)
        },
    }


def expected(accuracy: Sequence[Sequence[float]], nodes: int) -> float:
    """Return the tokens a step of the best tree of so many nodes."""
    return CandidateTree.from_accuracies(accuracy, nodes).expected(accuracy)


def some(states: Sequence[ExampleStates], tokens: int) -> list[ExampleStates]:
    """Return examples with so many tokens, the first of a random order; fewer are in larger sets.

    Raises:
        ValueError: there are not so many tokens.
    """
    order = random.Random(0).sample(range(len(states)), len(states))
    chosen: list[ExampleStates] = []
    for place in order:
        if tokens <= 0:
            break
        chosen.append(states[place])
        tokens -= len(chosen[-1][1])
    if tokens > 0:
        raise ValueError(f"the data are {tokens} tokens too few: lower --tokens")
    return chosen


def new_model(recipe: Recipe) -> MedusaModel:
    """Return the model with new heads, whose base model does not run."""
    return MedusaModel.from_base(
        smollm2.fetch(),
        num_heads=HEADS,
        num_layers=recipe.num_layers,
        own_lm_head=recipe.own_lm_head,
        prepack=False,
        dtype=torch.bfloat16,
    )


def states(options: argparse.Namespace) -> tuple[CachedStates, CachedStates]:
    """Return the hidden states of the training and the held-out examples; compute them once."""
    source = Source(str(smollm2.fetch()), str(options.data), evaluation=str(options.held_out))
    config = source.config().get_text_config()
    data = read_data(RECIPE, source, source.tokenizer(), config, say=lambda line: None)
    model = new_model(RECIPE)
    training_model = TrainingModel(model.base, model.heads)
    cached = partial(cached_states, training_model, cache=options.states, say=print)
    return cached(data.training), cached(data.evaluation)


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    heads = [f"{head + 1}: top 1, %" for head in range(HEADS)]
    trees = [f"{count} heads, {nodes} nodes" for count in range(3, HEADS + 1) for nodes in NODES]
    table = Table("variant", "tokens", "s", *heads, *trees)
    for row in rows:
        table.add_row(
            row["variant"],
            f"{row['tokens']:,}",
            f"{row['seconds']:.0f}",
            *(f"{100 * accuracy[0]:.1f}" for accuracy in row["accuracy"]),
            *(
                f"{value:.2f}"
                for each in row["tokens_per_step"].values()
                for value in each.values()
            ),
        )
    return table


def main() -> None:
    """Train the variants that have no result yet, and publish all results."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="answers to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="answers to measure on")
    parser.add_argument("--states", type=Path, required=True, help="folder for hidden states")
    parser.add_argument(
        "--tokens", type=int, default=100_000, help="tokens to train on (default: 100000)"
    )
    parser.add_argument("--epochs", type=float, default=2, help="passes over them (default: 2)")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME"
    )
    options = parse_arguments(parser)
    states(options)
    report = new_report(
        model=smollm2.HUB_ID, recipe=RECIPE.to_json(), epochs=options.epochs, rows=[]
    )
    file = device_file(options, report, KIND)
    if file.exists():
        report["rows"] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    done = {row["variant"] for row in report["rows"]}
    left = [name for name in options.variants if name not in done]
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.threads, mp_context=spawning) as pool:
        for finished in as_completed(pool.submit(train_variant, name, options) for name in left):
            report["rows"].append(finished.result())
            write_json(file, report, indent=1)
    publish_for_device(options, report, KIND, table_of(report["rows"]), width=210)


if __name__ == "__main__":
    main()
