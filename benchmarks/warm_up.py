"""`python -m benchmarks.warm_up`: after how many tokens a compiled step has paid for its compiling.

Each run is a process of its own: without compiling, compiling with an empty cache (what a new
    machine sees), and
compiling with the cache that the run before left (what every later process sees).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from medusa import demo
from medusa.evaluation.prompts import calibration_prompts
from medusa.evaluation.report import results_folder, write_json
from medusa.hardware.provenance import provenance

from .speed import MODELS

RUNS = ("eager", "compiled, empty cache", "compiled, kept cache")


def answer(width: int | None, run: str, cache: str, prompts: int, threads: int) -> dict[str, float]:
    """Seconds of the first answer, and of each token of the answers after it."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    torch.set_num_threads(threads)
    model, tokenizer = demo.load(inflate=width, compiled=run != "eager")
    took, tokens = [], []
    for ids in (torch.tensor([each]) for each in calibration_prompts(tokenizer, prompts + 1)):
        begun = time.perf_counter()
        tokens.append(
            model.generate(ids, max_new_tokens=128, do_sample=False).shape[1] - ids.shape[1]
        )
        took.append(time.perf_counter() - begun)
    return {"first": took[0], "token": sum(took[1:]) / sum(tokens[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--prompts", type=int, default=18, help="answers after the first")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=results_folder, default="benchmarks/results")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "provenance": provenance() | {"threads": options.threads},
        "models": {},
    }
    shown = Table("model", "", "first answer, s", "ms a token after it", "tokens until it has paid")
    for name in options.models:
        found: dict[str, list[dict[str, float]]] = {run: [] for run in RUNS}
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as cache:
                for run in RUNS:
                    with ProcessPoolExecutor(
                        1, mp_context=multiprocessing.get_context("spawn")
                    ) as pool:
                        told = pool.submit(
                            answer, MODELS[name], run, cache, options.prompts, options.threads
                        )
                        found[run].append(told.result())
        medians = {
            run: {
                key: statistics.median(each[key] for each in found[run])
                for key in ("first", "token")
            }
            for run in RUNS
        }
        eager = medians["eager"]
        for run, each in medians.items():
            saved = eager["token"] - each["token"]
            if saved > 0:
                each["pays_after_tokens"] = (each["first"] - eager["first"]) / saved
            paid = f"{each['pays_after_tokens']:.0f}" if saved > 0 else "-"
            shown.add_row(name, run, f"{each['first']:.1f}", f"{1000 * each['token']:.2f}", paid)
        report["models"][name] = medians
    console = Console(width=120)
    console.print(shown)
    console.print(f"written to {write_json(options.output, report, 'warm-up')}")


if __name__ == "__main__":
    main()
