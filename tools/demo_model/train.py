"""Rebuild the embedded model from nothing: `python -m tools.demo_model.train`.

Stages, in order: `tokenizer`, `backbone`, `answers` (the model's own, which the heads learn from),
    `heads`, `card`.
All are seeded; each leaves its result in the output folder, so that one can be run again alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from medusa.core.schedule import UNCALIBRATED
from medusa.core.tree import CandidateTree
from medusa.demo import FOLDER
from medusa.demo.tasks import CATEGORIES, make_task
from medusa.hardware.provenance import provenance
from medusa.loading import MedusaModel
from medusa.training import Example, evaluate_heads, train_heads
from medusa.training import Recipe as Training

from .backbone import accuracy, answers, train
from .card import write_card
from .recipe import EVEN, Recipe
from .stream import varied_tasks
from .tokenizer import train_tokenizer

STAGES = ("tokenizer", "backbone", "answers", "heads", "card")
ANSWERS = {"train": 800, "test": 40}
"""Answers for each category that the heads are trained and judged on, the first to varied tasks."""
JUDGED = 400
"""Held-out tasks of each category that the card tells the accuracy on."""
CHECKPOINT = "checkpoint.pt"
NODES = 8
"""Of the tree that is stored; what nodes cost is each machine's own."""
HEADS = Training(epochs=2, batch_size=8, micro_batch_size=8, num_layers=3, own_lm_head=False)


def make_tokenizer(recipe: Recipe, folder: Path, per_category: int = 1500) -> None:
    tasks = [
        make_task(name, -1 - seed, "train") for name in CATEGORIES for seed in range(per_category)
    ]
    texts = (text for task in tasks for text in (task.prompt, task.answer))
    train_tokenizer(texts, recipe.vocab_size, recipe.context).save_pretrained(folder)


def make_backbone(recipe: Recipe, folder: Path, work: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    report = train(recipe, tokenizer, folder, work / CHECKPOINT)
    (folder / "training.json").write_text(json.dumps({**report, **provenance()}, indent=1) + "\n")


def make_answers(folder: Path, work: Path) -> None:
    """The backbone's own greedy answers to tasks it was not trained on: new seeds, both splits."""
    model, tokenizer = _backbone(folder)
    varied = varied_tasks(EVEN, tokenizer, random.Random(1), 20_000_000)
    asked = {
        "train": list(itertools.islice(varied, ANSWERS["train"] * len(CATEGORIES))),
        "test": [
            make_task(name, 10_000_000 + seed)
            for name in CATEGORIES
            for seed in range(ANSWERS["test"])
        ],
    }
    for split, tasks in asked.items():
        lines = [
            json.dumps({"category": task.category, "prompt": task.prompt, "answer": text})
            for task, text in zip(tasks, answers(model, tokenizer, tasks), strict=True)
        ]
        (work / f"answers-{split}.jsonl").write_text("\n".join(lines) + "\n")


def make_heads(base: Path, folder: Path, work: Path) -> None:
    """Medusa-1 heads on the backbone's own answers; they begin as those that the backbone learnt
    with.

    Three layers that share the lm_head are right as often as one with an lm_head of its own, and a
    third of the size.
    """
    torch.manual_seed(0)
    backbone, tokenizer = _backbone(base)
    model = MedusaModel.from_base(
        backbone, HEADS.num_heads, num_layers=HEADS.num_layers, own_lm_head=HEADS.own_lm_head
    )
    model.heads.load_state_dict(torch.load(work / CHECKPOINT, weights_only=True)["heads"])
    started = time.perf_counter()
    losses = train_heads(model, _examples(tokenizer, work / "answers-train.jsonl"), HEADS)
    seconds = time.perf_counter() - started
    metrics = evaluate_heads(model, _examples(tokenizer, work / "answers-test.jsonl"))
    model.heads.to(torch.bfloat16)
    model.tree = CandidateTree.from_accuracies(metrics.accuracy, NODES)
    model.calibration = dataclasses.replace(UNCALIBRATED, accuracies=metrics.accuracy)
    model.save_pretrained(folder, base=f"../{base.name}")
    report = {
        "recipe": HEADS.to_json(),
        "seconds": seconds,
        "loss": sum(losses[-5:]) / len(losses[-5:]),
    }
    report |= {"accuracy": metrics.accuracy, "positions": metrics.positions, **provenance()}
    (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n")


def make_card(folder: Path) -> None:
    backbone, tokenizer = _backbone(folder / "base")
    right = accuracy(backbone, tokenizer, JUDGED)
    write_card(folder, backbone.num_parameters(), right, JUDGED, ANSWERS["train"] * len(CATEGORIES))


def _backbone(folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """The backbone as users run it: its saved bf16 weights, computed in fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def example(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> Example:
    """A request and its answer, to train heads on."""
    turn = [{"role": "user", "content": prompt}]
    text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    after = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return Example.answered(before, [*after, tokenizer.eos_token_id])


def _examples(tokenizer: PreTrainedTokenizerBase, file: Path) -> list[Example]:
    records = map(json.loads, file.read_text().splitlines())
    return [example(tokenizer, record["prompt"], record["answer"]) for record in records]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=FOLDER, help="folder to write (default: the embedded one)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo"), help="checkpoints and answers"
    )
    parser.add_argument(
        "--stage", choices=STAGES, action="append", help="only these stages (default: all)"
    )
    options = parser.parse_args()
    recipe = Recipe()
    base, heads, work = options.output / "base", options.output / "heads", options.work
    work.mkdir(parents=True, exist_ok=True)
    make = {
        "tokenizer": lambda: make_tokenizer(recipe, base),
        "backbone": lambda: make_backbone(recipe, base, work),
        "answers": lambda: make_answers(base, work),
        "heads": lambda: make_heads(base, heads, work),
        "card": lambda: make_card(options.output),
    }
    for stage in options.stage or STAGES:
        print(f"== {stage}", flush=True)
        make[stage]()


if __name__ == "__main__":
    main()
