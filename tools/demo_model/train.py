"""Rebuild the embedded model from scratch: `python -m tools.demo_model.train`.

The stages are `tokenizer`, `backbone`, `answers` (the backbone's own, which the heads train on),
`heads` and `card`. All are seeded. Each stage leaves its result in the output folder, so that it
can be run again alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from medusa.core.schedule import UNCALIBRATED
from medusa.core.tree import CandidateTree
from medusa.demo import FOLDER
from medusa.demo.tasks import CATEGORIES, make_task
from medusa.hardware.provenance import provenance
from medusa.hardware.timing import timed
from medusa.loading import MedusaModel
from medusa.training import Example, Recipe, evaluate_heads, train_heads

from .backbone import accuracy, greedy_answers, train_backbone
from .card import write_card
from .recipe import EVEN, BackboneRecipe
from .stream import varied_tasks
from .tokenizer import train_tokenizer

STAGES = ("tokenizer", "backbone", "answers", "heads", "card")
ANSWERS = {"train": 800, "test": 40}
"""Number of answers for each category that heads are trained and evaluated on."""
CARD_TASKS = 400
"""Held-out tasks of each category on which the card's accuracy is measured."""
CHECKPOINT = "checkpoint.pt"
NODES = 8
"""Size of the stored tree; calibration finds a machine's own."""
HEADS_RECIPE = Recipe(epochs=2, batch_size=8, micro_batch_size=8, num_layers=3, own_lm_head=False)


def make_tokenizer(recipe: BackboneRecipe, folder: Path, per_category: int = 1500) -> None:
    """Train the tokenizer on tasks with negative seeds, which no other stage uses."""
    tasks = [
        make_task(name, -1 - seed, "train") for name in CATEGORIES for seed in range(per_category)
    ]
    texts = (text for task in tasks for text in (task.prompt, task.answer))
    train_tokenizer(texts, recipe.vocab_size, recipe.context).save_pretrained(folder)


def make_backbone(recipe: BackboneRecipe, folder: Path, work: Path) -> None:
    """Train the backbone, and write its report beside it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    report = train_backbone(recipe, tokenizer, folder, work / CHECKPOINT)
    (folder / "training.json").write_text(json.dumps({**report, **provenance()}, indent=1) + "\n")


def make_answers(folder: Path, work: Path) -> None:
    """Write the backbone's own greedy answers to tasks with new seeds.

    Those to train on are answers to varied tasks, those to evaluate on to held-out tasks.
    """
    model, tokenizer = _backbone(folder)
    varied = varied_tasks(EVEN, tokenizer, random.Random(1), 20_000_000)
    split_tasks = {
        "train": list(itertools.islice(varied, ANSWERS["train"] * len(CATEGORIES))),
        "test": [
            make_task(name, 10_000_000 + seed)
            for name in CATEGORIES
            for seed in range(ANSWERS["test"])
        ],
    }
    for split, tasks in split_tasks.items():
        lines = [
            json.dumps({"category": task.category, "prompt": task.prompt, "answer": text})
            for task, text in zip(tasks, greedy_answers(model, tokenizer, tasks), strict=True)
        ]
        (work / f"answers-{split}.jsonl").write_text("\n".join(lines) + "\n")


def make_heads(base: Path, folder: Path, work: Path) -> None:
    """Train the heads by Medusa-1 on the backbone's own answers.

    They start from the heads that trained with the backbone. Heads of three layers that share the
    lm_head reach the accuracy of heads of one layer with an lm_head of their own, at a third of
    the size.
    """
    torch.manual_seed(0)
    backbone, tokenizer = _backbone(base)
    model = MedusaModel.from_base(
        backbone,
        HEADS_RECIPE.num_heads,
        num_layers=HEADS_RECIPE.num_layers,
        own_lm_head=HEADS_RECIPE.own_lm_head,
    )
    model.heads.load_state_dict(torch.load(work / CHECKPOINT, weights_only=True)["heads"])
    examples = _examples(tokenizer, work / "answers-train.jsonl")
    training = timed(partial(train_heads, model, examples, HEADS_RECIPE))
    last_losses = training.result[-5:]
    metrics = evaluate_heads(model, _examples(tokenizer, work / "answers-test.jsonl"))
    model.heads.to(torch.bfloat16)
    model.tree = CandidateTree.from_accuracies(metrics.accuracy, NODES)
    model.calibration = dataclasses.replace(UNCALIBRATED, accuracies=metrics.accuracy)
    model.save_pretrained(folder, base=f"../{base.name}")
    report = {
        "recipe": HEADS_RECIPE.to_json(),
        "seconds": training.seconds,
        "loss": sum(last_losses) / len(last_losses),
    }
    report |= {"accuracy": metrics.accuracy, "positions": metrics.positions, **provenance()}
    (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n")


def make_card(folder: Path) -> None:
    """Measure the backbone's accuracy, and write the model card."""
    backbone, tokenizer = _backbone(folder / "base")
    right = accuracy(backbone, tokenizer, CARD_TASKS)
    write_card(
        folder, backbone.num_parameters(), right, CARD_TASKS, ANSWERS["train"] * len(CATEGORIES)
    )


def _backbone(folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return the backbone as users run it, bfloat16 weights in float32, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def chat_example(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> Example:
    """Return a training example of a request and its answer in the chat template."""
    turn = [{"role": "user", "content": prompt}]
    text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    after = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return Example.answered(before, [*after, tokenizer.eos_token_id])


def _examples(tokenizer: PreTrainedTokenizerBase, file: Path) -> list[Example]:
    records = map(json.loads, file.read_text().splitlines())
    return [chat_example(tokenizer, record["prompt"], record["answer"]) for record in records]


def main() -> None:
    """Run the stages that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=FOLDER,
        help="folder of the model (default: the embedded model's)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/demo"),
        help="folder for checkpoints and answers (default: build/demo)",
    )
    parser.add_argument(
        "--stage",
        choices=STAGES,
        action="append",
        help="run this stage; may be repeated (default: all stages)",
    )
    options = parser.parse_args()
    recipe = BackboneRecipe()
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
