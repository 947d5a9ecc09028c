"""Rebuild the embedded model from nothing: `python -m medusa.demo.train`.

Stages, in order: `tokenizer`, `backbone`, `heads`, `card`. Every one is seeded and leaves its result in the output
folder, so a stage can be run again alone.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from transformers import AutoTokenizer

from .backbone import Recipe, train, write_report
from .tasks import CATEGORIES, make_task
from .tokenizer import train_tokenizer

HERE = Path(__file__).parent / "model"


def make_tokenizer(recipe: Recipe, folder: Path, per_category: int = 1500) -> None:
    tasks = [make_task(name, -1 - seed, "train") for name in CATEGORIES for seed in range(per_category)]
    texts = (text for task in tasks for text in (task.prompt, task.answer))
    train_tokenizer(texts, recipe.vocab_size, recipe.context).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write (default: the embedded one)")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimiser steps of the backbone")
    parser.add_argument("--stage", choices=["tokenizer", "backbone"], action="append")
    options = parser.parse_args()
    recipe = dataclasses.replace(Recipe(), steps=options.steps)
    stages = options.stage or ["tokenizer", "backbone"]
    base = options.output / "base"
    if "tokenizer" in stages:
        make_tokenizer(recipe, base)
    if "backbone" in stages:
        report = train(recipe, AutoTokenizer.from_pretrained(base), base)
        write_report(base, report)


if __name__ == "__main__":
    torch.set_num_threads(torch.get_num_threads())
    main()
