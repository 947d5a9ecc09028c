"""`make reproduce-training`: tables 2 and 3 of the paper on the embedded model.

It starts from the embedded model's backbone as it was before it had met any heads, and trains it as
`medusa train` does: heads alone, heads and backbone with and without the protections of section
2.2.2, by self-distillation, and the backbone alone on as many tokens. Each result answers the same
held-out prompts, whose answers are checked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from medusa import demo, files
from medusa.calibration.recording import record
from medusa.calibration.report import measure
from medusa.calibration.search import joint_tree
from medusa.core.engine import PLAIN
from medusa.core.tree import CandidateTree
from medusa.demo.tasks import CATEGORIES, Task, make_task
from medusa.evaluation.measure import Prompt
from medusa.evaluation.prompts import calibration_prompts, held_out
from medusa.evaluation.report import WIDTH, results_folder, slug
from medusa.hardware.provenance import provenance
from medusa.loading import MedusaModel
from medusa.training import Example, Recipe, Source, evaluate_heads, train
from tools.demo_model.backbone import answers
from tools.demo_model.recipe import REASKING
from tools.demo_model.stream import varied_tasks
from tools.demo_model.train import example

START = Path("benchmarks/backbone-before-heads.safetensors")
"""The embedded model's weights after step 14,950 of its training, the last before heads learnt
along.
"""
FIRST_SEED = 50_000_000
"""Tasks from here on are this benchmark's own."""
DENSE = CandidateTree.dense([2, 1, 1, 1, 1])
NODES = len(DENSE)
"""Of every tree but the chain, so that what a tree gains is not its size."""
BASELINE = "baseline"
TOGETHER = 8
"""Requests answered at a time where nothing is timed."""
ARGUMENTS: dict[str, Any] = {"max_new_tokens": 320, "do_sample": False}
SHAPE: dict[str, Any] = {
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
"""What all runs share."""
HEADS = Recipe(
    method="medusa-1",
    epochs=2,
    cache_hidden_states=True,
    **{**SHAPE, "packing": False, "batch_size": 32, "micro_batch_size": 32},
)
SETTLED = 1.005
"""Heads alone are trained again, as often as before, until that gives less than this share of
tokens a step.
"""
ON: dict[str, Any] = {
    **SHAPE,
    "epochs": 1,
    "lora_rank": 0,
    "optimizer": "muon",
    "lr": 9e-4,
    "batch_size": 16,
    "micro_batch_size": 16,
}
"""As the backbone was made, with steps as long as it last took."""
BOTH = Recipe(method="medusa-2", lambda0=0.05, heads_lr_factor=2.5, **ON)
"""So small a model pays for foresight with accuracy: lambda_0 is small."""
DISTILLED = Recipe(method="medusa-2", distill=True, lambda0=0.01, epochs=1, **SHAPE)
BACKBONE = Recipe(method="backbone", **ON)
DIRECT = Recipe(method="direct", epochs=0.5, lora_rank=0, **SHAPE)
TASKS = replace(
    REASKING,
    shares={"extraction": 0.3, "tables": 0.3, "sql": 0.1, "math": 0.1, "code": 0.1, "writing": 0.1},
)
"""Mostly what is forgotten first: copying."""


@dataclass(frozen=True)
class Judge:
    """What all results are judged by.

    Attributes:
        checked: held-out requests whose answers can be checked.
        timed: held-out requests to time, by turns with plain decoding.
        truth: held-out requests with the answers that are right, for perplexity.
        recorded: other requests, on which trees are chosen.
    """

    checked: Sequence[Prompt]
    timed: Sequence[Sequence[int]]
    truth: Sequence[Example]
    recorded: Sequence[Sequence[int]]

    def tree(self, model: MedusaModel) -> CandidateTree:
        """The best of `NODES` nodes for these heads (section 2.3.3)."""
        return joint_tree(record(model, self.recorded, ARGUMENTS), NODES)

    def speed(self, model: MedusaModel, tree: CandidateTree) -> dict[str, Any]:
        """What a tree gives, against the same model's plain decoding."""
        if tree is PLAIN:
            return {"nodes": 1, "acceleration_rate": 1.0, "overhead": 1.0, "speedup": 1.0}
        told = measure(model, self.timed, tree, ARGUMENTS)
        rates = {name: getattr(told, name) for name in ("acceleration_rate", "overhead", "speedup")}
        return {"nodes": len(tree), **rates}

    def answers(
        self, model: MedusaModel, tree: CandidateTree, name: str, console: Console
    ) -> list[list[int]]:
        """Greedy answers to the checked requests, several at a time."""
        model.refresh()
        order = sorted(range(len(self.checked)), key=lambda place: self.checked[place].ids.shape[1])
        found: dict[int, list[int]] = {}
        for begin in track(range(0, len(order), TOGETHER), name, console=console):
            places = order[begin : begin + TOGETHER]
            prompts = [self.checked[place].ids[0] for place in places]
            masks = [torch.ones_like(prompt) for prompt in prompts]
            inputs, mask = (
                pad_sequence(part, batch_first=True, padding_side="left")
                for part in (prompts, masks)
            )
            session = model.steps(inputs, attention_mask=mask, tree=tree, **ARGUMENTS)
            for _ in session:
                pass
            for place, prompt, row in zip(places, prompts, session.rows, strict=True):
                found[place] = row.ids[len(prompt) :]
        return [found[place] for place in range(len(order))]

    def quality(self, model: MedusaModel, answers: Sequence[list[int]]) -> dict[str, Any]:
        """Percent of answers that are right, and the backbone's perplexity of the right ones."""
        right: dict[str, list[bool]] = {}
        for prompt, answer in zip(self.checked, answers, strict=True):
            right.setdefault(prompt.category, []).append(bool(prompt.judge(answer)))
        return {
            "quality": 100 * statistics.mean(itertools.chain.from_iterable(right.values())),
            "categories": {name: 100 * statistics.mean(each) for name, each in right.items()},
            "prompts": len(self.checked),
            "perplexity": evaluate_heads(model, self.truth).perplexity,
        }


def begin(weights: Path, folder: Path) -> Path:
    """The embedded model's backbone with other weights, as a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        demo.FOLDER / "base",
        folder,
        ignore=shutil.ignore_patterns("*.safetensors", "training.json"),
    )
    shutil.copyfile(weights, folder / "model.safetensors")
    return folder


def write_data(backbone: Path, tasks: Sequence[Task], own: int, folder: Path) -> dict[str, Path]:
    """What is learnt from, as files: the tasks' right answers, and the backbone's own to the first
    of them.
    """
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    files = {"truth": folder / "truth.jsonl", "own": folder / "own.jsonl"}
    _write(files["truth"], tasks, [task.answer for task in tasks])
    if not files["own"].exists():
        base = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32).eval()
        model = MedusaModel.from_base(base, num_heads=1, own_lm_head=False)
        _write(files["own"], tasks[:own], answers(model.packed_base, tokenizer, list(tasks[:own])))
    return files


def _write(file: Path, tasks: Sequence[Task], texts: Sequence[str]) -> None:
    lines = [
        json.dumps({"prompt": task.prompt, "response": text})
        for task, text in zip(tasks, texts, strict=True)
        if text
    ]
    beside = file.with_suffix(".unfinished")
    beside.write_text("\n".join(lines) + "\n")
    beside.rename(file)


def heads_alone(backbone: Path, data: Path, folder: Path, console: Console) -> list[Path]:
    """Medusa-1 again and again, from where it was, until it stops improving; every result, the last
    the best.
    """
    made: list[Path] = []
    rates: list[float] = []
    while len(rates) < 2 or rates[-1] > SETTLED * rates[-2]:
        start = made[-1] if made else backbone
        name = f"medusa-1-{len(made) + 1}"
        made.append(
            train(HEADS, Source(str(start), str(data)), folder / name, say=told(console, name))
        )
        metrics = json.loads((made[-1] / "training.json").read_text())["metrics"]
        rates.append(metrics["eval_acceleration_rate"])
    return made


def reproduce(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train what is compared, judge all of it, and say what came of it."""
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    backbone = begin(options.start, work / "backbone")
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    tasks = varied_tasks(TASKS, tokenizer, random.Random(3), FIRST_SEED)
    data = write_data(backbone, list(itertools.islice(tasks, options.tasks)), options.own, work)
    minutes: dict[str, float] = {}

    def made(method: str, recipe: Recipe, start: Path, learnt_from: str, name: str) -> Path:
        begun = time.perf_counter()
        folder = train(
            recipe,
            Source(str(start), str(data[learnt_from])),
            work / name,
            say=told(console, method),
        )
        minutes[method] = (time.perf_counter() - begun) / 60
        return folder

    begun = time.perf_counter()
    alone = heads_alone(backbone, data["truth"], work, console)
    minutes["Medusa-1"] = (time.perf_counter() - begun) / 60
    results = {
        "direct fine-tuning": made("direct fine-tuning", DIRECT, backbone, "truth", "direct"),
        "Medusa-1": alone[-1],
        "Medusa-2": made("Medusa-2", BOTH, alone[-2], "truth", "medusa-2"),
        "Medusa-2, self-distilled": made(
            "Medusa-2, self-distilled", DISTILLED, alone[-2], "own", "self-distilled"
        ),
    }
    longer = made("backbone alone, as many tokens", BACKBONE, backbone, "truth", "backbone-alone")
    judge = judged(tokenizer, options)

    said: dict[str, list[list[int]]] = {}

    def row(method: str, model: MedusaModel, tree: CandidateTree) -> dict[str, Any]:
        found = said[method] = judge.answers(model, tree, method, console)
        same = 100 * statistics.mean(
            each == theirs for each, theirs in zip(found, said[BASELINE], strict=True)
        )
        worth = {**judge.quality(model, found), "as_baseline": same, **judge.speed(model, tree)}
        return {"method": method, **worth, "minutes": minutes.get(method, 0.0)}

    rows = [
        row(BASELINE, _load(alone[-1]), PLAIN),
        row("backbone alone, as many tokens", _load(longer), PLAIN),
    ]
    ladder = []
    for method, folder in results.items():
        model = _load(folder)
        tree = judge.tree(model)
        rows.append(row(method, model, tree))
        if method == "Medusa-1":
            chain = CandidateTree.chain(model.heads.config.num_heads)
            trees = {"heads alone": chain, "dense tree": DENSE}
            ladder = [{"method": name, **judge.speed(model, each)} for name, each in trees.items()]
    shipped = demo.load(all_heads=True)[0]
    rows.append(row("Medusa-2, longer: the embedded model", shipped, judge.tree(shipped)))
    by_name = {row["method"]: row for row in rows}
    ladder += [{**by_name["Medusa-1"], "method": "optimised tree"}, by_name["Medusa-2"]]
    return {"rows": rows, "ladder": ladder, "tasks": options.tasks, "own": options.own}


def told(console: Console, name: str) -> Callable[[str], None]:
    """Says a run's lines with its name before them."""
    return lambda line: console.print(f"{name}: {line}", soft_wrap=True, highlight=False)


def judged(tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace) -> Judge:
    """The held-out requests."""
    prompts = held_out(tokenizer, options.prompts)
    tasks = [
        make_task(name, FIRST_SEED + seed) for seed in range(options.prompts) for name in CATEGORIES
    ]
    return Judge(
        [prompt for prompt in prompts if prompt.judge([]) is not None],
        [prompt.ids[0].tolist() for prompt in prompts[: options.timed]],
        [example(tokenizer, task.prompt, task.answer) for task in tasks],
        calibration_prompts(tokenizer, options.recorded),
    )


def _load(folder: Path) -> MedusaModel:
    return MedusaModel.from_pretrained(folder, dtype=torch.float32, all_heads=True)


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Rows as people read them."""
    categories = list(rows[-1]["categories"])
    shown = Table("", *_GAINS, "quality %", *categories, "perplexity", "as baseline %", title=title)
    for row in rows:
        gains = (f"{row[name]:.2f}" for name in ("acceleration_rate", "overhead", "speedup"))
        worth: Sequence[str] = ()
        if "quality" in row:
            shares = (f"{share:.1f}" for share in (row["quality"], *row["categories"].values()))
            worth = (*shares, f"{row['perplexity']:.4f}", f"{row['as_baseline']:.1f}")
        shown.add_row(row["method"], str(row["nodes"]), *gains, *worth)
    return shown


_GAINS = ("nodes", "tokens / step", "overhead", "speedup")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--start", type=Path, default=START, help="weights of the backbone to start from"
    )
    parser.add_argument("--tasks", type=int, default=13500, help="tasks to learn from")
    parser.add_argument(
        "--own", type=int, default=4000, help="of them, tasks that the backbone answers itself"
    )
    parser.add_argument(
        "--prompts", type=int, default=200, help="held-out prompts of each of the six categories"
    )
    parser.add_argument("--timed", type=int, default=60, help="of them, prompts to time")
    parser.add_argument(
        "--recorded", type=int, default=60, help="other prompts, on which trees are chosen"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/training"),
        help="data and runs, which go on from there",
    )
    parser.add_argument("--output", type=results_folder, default="benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console, errors = Console(width=WIDTH), Console(stderr=True)
    begun = time.perf_counter()
    made = provenance()
    report = {"provenance": made, **reproduce(options, errors)}
    report["minutes"] = (time.perf_counter() - begun) / 60
    console.print(table("Table 2", report["rows"]), table("Table 3", report["ladder"]))
    file = options.output / f"training-{slug(made['device'])}.json"
    files.write_json(file, report, indent=1)
    console.print(f"written to {file}")


if __name__ == "__main__":
    main()
