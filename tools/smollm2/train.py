"""Make the heads for SmolLM2-135M-Instruct: `python -m tools.smollm2.train`.

The stages are `data` (the model's own answers), `heads` and `tree`. Each is one or more commands of
this library, which are printed before they run; each resumes where it was stopped. The model is
fetched first, if need be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medusa.demo import smollm2
from medusa.files import write_json
from medusa.formats import names
from medusa.training.answers_file import AnswerLine

from .code_prompts import code_prompts
from .task_prompts import task_prompts

LIMIT = 384
"""Maximum number of new tokens of an answer."""


@dataclass(frozen=True)
class Part:
    """A part of the data: prompts, and how they are answered.

    Attributes:
        prompts: arguments of `medusa distill` that name the prompts.
        temperature: of the answers; 0 is greedy.
        seed: of the sampling.
    """

    prompts: tuple[str, ...]
    temperature: float
    seed: int


def parts(options: argparse.Namespace) -> dict[str, Part]:
    """Return the parts of the data by name: greedy answers and sampled ones of each kind."""
    code, tasks = (options.work / f"{kind}-prompts.jsonl" for kind in ("code", "tasks"))
    own = ("--self-prompts", str(options.self_prompts))
    found = {
        "own-greedy": Part(own, 0.0, 1),
        "own-sampled": Part(own, 0.7, 2),
        "code-greedy": Part(("--prompts", str(code)), 0.0, 3),
        "code-sampled": Part(("--prompts", str(code)), 0.7, 4),
        "tasks-greedy": Part(("--prompts", str(tasks)), 0.0, 7),
        "tasks-sampled": Part(("--prompts", str(tasks)), 0.7, 8),
    }
    if options.gsm8k is not None:
        problems = ("--prompts", options.gsm8k, "--limit", str(options.problems))
        found["math-greedy"] = Part(problems, 0.0, 5)
        found["math-sampled"] = Part(problems, 0.7, 6)
    return found


def medusa(*arguments: object, threads: int | None = None) -> None:
    """Print a command of this library and run it.

    Args:
        threads: CPU threads; by default those that torch takes.

    Raises:
        SystemExit: it failed.
    """
    words = [str(each) for each in arguments]
    print(f"$ medusa {shlex.join(words)}", flush=True)
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "medusa.cli", *words]
    done = subprocess.run(command, env=os.environ | environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def make_data(options: argparse.Namespace, base: Path) -> None:
    """Let the model answer all prompts, and split the answers in those to train on and others."""
    made = {"code": code_prompts(options.code_prompts), "tasks": task_prompts(options.task_prompts)}
    for kind, prompts in made.items():
        lines = (json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        (options.work / f"{kind}-prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    with ThreadPoolExecutor(options.processes) as pool:
        files = list(pool.map(partial(answer, options, base), parts(options).items()))
    lines_by_question: dict[str, list[str]] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            lines_by_question.setdefault(AnswerLine(**json.loads(line)).question, []).append(line)
    split(lines_by_question, options)


def answer(options: argparse.Namespace, base: Path, named: tuple[str, Part]) -> Path:
    """Let the model answer the prompts of a part of the data; return the file of the answers.

    Several parts are answered at once, each by a process with its share of the CPU threads: Python
    takes a third of the time of a step, and the processes' Python runs at the same time.
    """
    name, part = named
    file: Path = options.work / f"{name}.jsonl"
    settings = ("--temperature", part.temperature, "--seed", part.seed)
    size = ("--max-new-tokens", LIMIT, "--batch-size", options.batch_size)
    threads = max(1, (os.cpu_count() or 1) // options.processes)
    medusa("distill", base, *part.prompts, *settings, *size, "--output", file, threads=threads)
    return file


def split(lines_by_question: dict[str, list[str]], options: argparse.Namespace) -> None:
    """Write the answers to every `hold_out`-th question to one file, and all others to another."""
    questions = sorted(lines_by_question)
    random.Random(0).shuffle(questions)
    held_out = set(questions[:: options.hold_out])
    for name, chosen in (("held-out", held_out), ("train", set(questions) - held_out)):
        lines = [line for each in questions if each in chosen for line in lines_by_question[each]]
        (options.work / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def make_heads(options: argparse.Namespace, base: Path) -> None:
    """Train the heads on the frozen model (Medusa-1)."""
    work = options.work
    medusa(
        *("train", base, "--data", work / "train.jsonl", "--evaluation", work / "held-out.jsonl"),
        *("--output", work / "heads", "--config", Path(__file__).with_name("heads.yaml")),
        *("--hidden-states", work / "states"),
    )


def make_tree(options: argparse.Namespace, base: Path) -> None:
    """Calibrate the tree on held-out prompts, and copy heads and tree into the package."""
    work = options.work
    files = ("--data", work / "held-out.jsonl", "--resume", work / "calibration")
    medusa("calibrate", work / "heads", *files, "--base", base)
    smollm2.HEADS.mkdir(exist_ok=True)  # the card in it stays
    shutil.copyfile(work / "heads" / names.WEIGHTS, smollm2.HEADS / names.WEIGHTS)
    config = json.loads((work / "heads" / names.CONFIG).read_text(encoding="utf-8"))
    tree = json.loads((work / "heads" / names.TREE).read_text(encoding="utf-8"))
    # the paths on this machine mean nothing elsewhere
    config["base_model_name_or_path"] = tree["made"]["base"] = smollm2.HUB_ID
    write_json(smollm2.HEADS / names.CONFIG, config, indent=2)
    write_json(smollm2.HEADS / names.TREE, tree, indent=1)


STAGES = {"data": make_data, "heads": make_heads, "tree": make_tree}


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument(
        "--work", type=Path, default=Path("build/smollm2"), help="folder for data and runs"
    )
    parser.add_argument(
        "--self-prompts", type=int, default=5000, help="conversations the model begins itself"
    )
    parser.add_argument("--code-prompts", type=int, default=1500, help="requests for functions")
    parser.add_argument("--task-prompts", type=int, default=3000, help="requests of other kinds")
    parser.add_argument(
        "--gsm8k", help="file or dataset with the training problems of GSM8K (default: none)"
    )
    parser.add_argument("--problems", type=int, default=2000, help="number of those problems")
    parser.add_argument("--batch-size", type=int, default=64, help="answers decoded at once")
    parser.add_argument("--processes", type=int, default=2, help="parts answered at once")
    parser.add_argument(
        "--hold-out", type=int, default=50, help="one question of so many is held out"
    )
    return parser.parse_args()


def main() -> None:
    """Run the stages."""
    options = parse_options()
    options.work.mkdir(parents=True, exist_ok=True)
    base = smollm2.fetch()
    for stage in options.stages:
        STAGES[stage](options, base)


if __name__ == "__main__":
    main()
