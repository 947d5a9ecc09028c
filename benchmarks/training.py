"""`make reproduce-training`: tables 2 and 3 of the paper on the embedded model.

It starts from the embedded model's backbone as it was before it had met any heads, and trains it as
`medusa train` does: heads alone, heads and backbone with and without the protections of section
2.2.2, by self-distillation, and the backbone alone on the same number of tokens. Each result
answers the same held-out prompts, whose answers are checked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from medusa import demo
from medusa.core.engine import PLAIN
from medusa.core.tree import CandidateTree
from medusa.demo.tasks import CATEGORIES, Task, make_task
from medusa.evaluation.prompts import calibration_prompts, question_ids, task_questions
from medusa.hardware.timing import timed
from medusa.loading import MedusaModel
from medusa.training import Recipe, Source, train
from tools.demo_model.backbone import greedy_answers
from tools.demo_model.recipe import REASKING
from tools.demo_model.stream import varied_tasks
from tools.demo_model.train import chat_example

from .harness import ROOT, WIDE, argument_parser, new_report, parse_arguments, publish_for_device
from .judge import Judge

START = ROOT / "benchmarks" / "backbone-before-heads.safetensors"
"""The embedded model's weights after step 14,950 of its training, before heads trained with it."""
FIRST_SEED = 50_000_000
"""First seed of this benchmark's own tasks."""
DENSE = CandidateTree.dense([2, 1, 1, 1, 1])
NODES = len(DENSE)
"""Size of every tree but the chain, so that trees differ in shape alone."""
BASELINE = "baseline"
BACKBONE_ALONE = "backbone alone, as many tokens"
GAINS = ("nodes", "tokens / step", "overhead", "speedup")
"""Headings of the speed figures."""

SHARED: dict[str, Any] = {
    "num_layers": 3,
    "own_lm_head": False,
    "packing": True,
    "max_length": 512,
    "batch_size": 8,
    "micro_batch_size": 8,
    "bf16": True,
    "log_every": 25,
    "save_every": 100,
    "evaluate_every": 0,
}
"""Settings of all recipes."""
MEDUSA_1 = Recipe(
    method="medusa-1",
    epochs=2,
    cache_hidden_states=True,
    **{**SHARED, "packing": False, "batch_size": 32, "micro_batch_size": 32},
)
SETTLED = 1.005
"""Medusa-1 is repeated until a run gains less than this factor in tokens a step."""
WHOLE_BACKBONE: dict[str, Any] = {
    **SHARED,
    "epochs": 1,
    "lora_rank": 0,
    "optimizer": "muon",
    "lr": 9e-4,
    "batch_size": 16,
    "micro_batch_size": 16,
}
"""The backbone's own optimiser, and the learning rate that its training ended with."""
MEDUSA_2 = Recipe(method="medusa-2", lambda0=0.05, heads_lr_factor=2.5, **WHOLE_BACKBONE)
"""lambda_0 is small: a backbone of this size loses accuracy when it learns to look ahead."""
SELF_DISTILLED = Recipe(method="medusa-2", distill=True, lambda0=0.01, epochs=1, **SHARED)
BACKBONE = Recipe(method="backbone", **WHOLE_BACKBONE)
DIRECT = Recipe(method="direct", epochs=0.5, lora_rank=0, **SHARED)
TASKS = replace(
    REASKING,
    shares={"extraction": 0.3, "tables": 0.3, "sql": 0.1, "math": 0.1, "code": 0.1, "writing": 0.1},
)
"""Mixture of the tasks trained on: mostly copying, which is forgotten first."""


@dataclass
class TrainingRuns:
    """The training runs of this benchmark, each in a folder of its own where it is resumed.

    Attributes:
        work: folder of the runs.
        backbone: folder of the backbone they start from.
        data: files to train on: "truth" holds right answers, "own" the backbone's own.
        console: shows the runs' lines.
        minutes: duration of each method's training.
    """

    work: Path
    backbone: Path
    data: dict[str, Path]
    console: Console
    minutes: dict[str, float] = field(default_factory=dict)

    def train(self, method: str, recipe: Recipe, start: Path, data: str, folder: str) -> Path:
        """Train by a recipe, from the model in `start`; return the folder of the result."""
        source = Source(str(start), str(self.data[data]))
        call = partial(train, recipe, source, self.work / folder, say=self._say(method))
        run = timed(call)
        self.minutes[method] = self.minutes.get(method, 0.0) + run.seconds / 60
        return run.result

    def medusa_1(self) -> list[Path]:
        """Repeat Medusa-1, each run from the last, until it settles; return all results in order.

        The last result is the one that gained less than `SETTLED` over the one before.
        """
        folders: list[Path] = []
        rates: list[float] = []
        while len(rates) < 2 or rates[-1] > SETTLED * rates[-2]:
            start = folders[-1] if folders else self.backbone
            name = f"medusa-1-{len(folders) + 1}"
            folders.append(self.train("Medusa-1", MEDUSA_1, start, "truth", name))
            metrics = json.loads((folders[-1] / "training.json").read_text())["metrics"]
            rates.append(metrics["eval_acceleration_rate"])
        return folders

    def all(self) -> dict[str, Path]:
        """Train by all methods; return the folder of each result."""
        heads = self.medusa_1()
        direct = self.train("direct fine-tuning", DIRECT, self.backbone, "truth", "direct")
        both = self.train("Medusa-2", MEDUSA_2, heads[-2], "truth", "medusa-2")
        distilled = self.train(
            "Medusa-2, self-distilled", SELF_DISTILLED, heads[-2], "own", "self-distilled"
        )
        alone = self.train(BACKBONE_ALONE, BACKBONE, self.backbone, "truth", "backbone-alone")
        return {
            BASELINE: heads[-1],
            BACKBONE_ALONE: alone,
            "direct fine-tuning": direct,
            "Medusa-1": heads[-1],
            "Medusa-2": both,
            "Medusa-2, self-distilled": distilled,
        }

    def _say(self, method: str) -> Callable[[str], None]:
        """Return a function that prints a run's lines with its method before them."""
        return lambda line: self.console.print(f"{method}: {line}", soft_wrap=True, highlight=False)


@dataclass
class Verdicts:
    """Rows of table 2, each judged as soon as its model is there.

    Attributes:
        judge: measures quality and speed of the models.
        console: shows the progress.
        minutes: duration of each method's training.
        rows: the rows so far.
    """

    judge: Judge
    console: Console
    minutes: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._baseline_answers: list[list[int]] = []

    def add(self, method: str, model: MedusaModel, tree: CandidateTree) -> None:
        """Judge a model that decodes with a tree; the baseline must come first."""
        answers = self.judge.answers(model, tree, method, self.console)
        if method == BASELINE:
            self._baseline_answers = answers
        same = [
            own == baseline for own, baseline in zip(answers, self._baseline_answers, strict=True)
        ]
        self.rows.append(
            {
                "method": method,
                **self.judge.quality(model, answers),
                "as_baseline": 100 * statistics.mean(same),
                **self.judge.speed(model, tree),
                "minutes": self.minutes.get(method, 0.0),
            }
        )

    def row(self, method: str) -> dict[str, Any]:
        """Return a method's row."""
        return next(row for row in self.rows if row["method"] == method)


def write_backbone(weights: Path, folder: Path) -> Path:
    """Write the embedded model's backbone with other weights to a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        demo.FOLDER / "base",
        folder,
        ignore=shutil.ignore_patterns("*.safetensors", "training.json"),
    )
    shutil.copyfile(weights, folder / "model.safetensors")
    return folder


def write_data(backbone: Path, tasks: Sequence[Task], own: int, folder: Path) -> dict[str, Path]:
    """Write the files to train on.

    Args:
        own: number of tasks that the backbone answers itself.

    Returns:
        The files: "truth" with the right answers, "own" with the backbone's own.
    """
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    written = {"truth": folder / "truth.jsonl", "own": folder / "own.jsonl"}
    _write_answers(written["truth"], tasks, [task.answer for task in tasks])
    if not written["own"].exists():
        base = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32).eval()
        model = MedusaModel.from_base(base, num_heads=1, own_lm_head=False)
        texts = greedy_answers(model.packed_base, tokenizer, list(tasks[:own]))
        _write_answers(written["own"], tasks[:own], texts)
    return written


def _write_answers(file: Path, tasks: Sequence[Task], texts: Sequence[str]) -> None:
    lines = [
        json.dumps({"prompt": task.prompt, "response": text})
        for task, text in zip(tasks, texts, strict=True)
        if text
    ]
    beside = file.with_suffix(".unfinished")
    beside.write_text("\n".join(lines) + "\n")
    beside.rename(file)


def new_judge(tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace) -> Judge:
    """Return a judge with the numbers of held-out requests that the options name."""
    questions = task_questions(options.prompts)
    tasks = [
        make_task(name, FIRST_SEED + seed) for seed in range(options.prompts) for name in CATEGORIES
    ]
    return Judge(
        tokenizer,
        [question for question in questions if question.check is not None],
        [question_ids(tokenizer, question) for question in questions[: options.timed]],
        [chat_example(tokenizer, task.prompt, task.answer) for task in tasks],
        calibration_prompts(tokenizer, options.recorded),
    )


def reproduce(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train by all methods, judge the results, and return the rows of both tables."""
    options.work.mkdir(parents=True, exist_ok=True)
    backbone = write_backbone(options.start, options.work / "backbone")
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    endless = varied_tasks(TASKS, tokenizer, random.Random(3), FIRST_SEED)
    tasks = list(itertools.islice(endless, options.tasks))
    data = write_data(backbone, tasks, options.own, options.work)
    runs = TrainingRuns(options.work, backbone, data, console)
    results = runs.all()
    verdicts = Verdicts(new_judge(tokenizer, options), console, runs.minutes)
    ladder = judge_all(verdicts, results)
    return {
        "rows": verdicts.rows,
        "ladder": ladder,
        "tasks": options.tasks,
        "own": options.own,
    }


def judge_all(verdicts: Verdicts, results: dict[str, Path]) -> list[dict[str, Any]]:
    """Judge every result, and the embedded model; return the rows of table 3.

    Args:
        verdicts: collects the rows of table 2.
        results: folder of each method's result.
    """
    ladder: list[dict[str, Any]] = []
    for method, folder in results.items():
        model = MedusaModel.from_pretrained(folder, dtype=torch.float32, all_heads=True)
        if method in (BASELINE, BACKBONE_ALONE):
            verdicts.add(method, model, PLAIN)
            continue
        verdicts.add(method, model, verdicts.judge.best_tree(model, NODES))
        if method == "Medusa-1":
            chain = CandidateTree.chain(model.heads.config.num_heads)
            for name, tree in {"heads alone": chain, "dense tree": DENSE}.items():
                ladder.append({"method": name, **verdicts.judge.speed(model, tree)})
    shipped = demo.load(all_heads=True)[0]
    tree = verdicts.judge.best_tree(shipped, NODES)
    verdicts.add("Medusa-2, longer: the embedded model", shipped, tree)
    return [
        *ladder,
        {**verdicts.row("Medusa-1"), "method": "optimised tree"},
        verdicts.row("Medusa-2"),
    ]


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return a printed table of rows; the last row must have been judged for quality."""
    categories = list(rows[-1]["categories"])
    shown = Table("", *GAINS, "quality %", *categories, "perplexity", "as baseline %", title=title)
    for row in rows:
        gains = (f"{row[name]:.2f}" for name in ("acceleration_rate", "overhead", "speedup"))
        worth: Sequence[str] = ()
        if "quality" in row:
            shares = (f"{share:.1f}" for share in (row["quality"], *row["categories"].values()))
            worth = (*shares, f"{row['perplexity']:.4f}", f"{row['as_baseline']:.1f}")
        shown.add_row(row["method"], str(row["nodes"]), *gains, *worth)
    return shown


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--start", type=Path, default=START, help="weights of the backbone to start from"
    )
    parser.add_argument("--tasks", type=int, default=13500, help="tasks to train on")
    parser.add_argument(
        "--own", type=int, default=4000, help="number of those that the backbone answers itself"
    )
    parser.add_argument(
        "--prompts", type=int, default=200, help="held-out prompts of each of the six categories"
    )
    parser.add_argument("--timed", type=int, default=60, help="number of those to time")
    parser.add_argument(
        "--recorded", type=int, default=60, help="other prompts, on which trees are chosen"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "build" / "training",
        help="folder for data and runs, where they are resumed (default: build/training)",
    )
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    report = new_report()
    run = timed(partial(reproduce, options, Console(stderr=True)))
    report |= {**run.result, "minutes": run.seconds / 60}
    tables = table("Table 2", report["rows"]), table("Table 3", report["ladder"])
    publish_for_device(options, report, "training", *tables, width=WIDE)


if __name__ == "__main__":
    main()
