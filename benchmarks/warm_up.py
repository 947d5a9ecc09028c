"""`python -m benchmarks.warm_up`: the tokens after which compiling the steps has paid for itself.

Every run is a process of its own: without compiling, compiling with an empty cache (the first
process on a machine), and compiling with the cache of the run before (every later process).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from typing import Any

import torch
from rich.table import Table

from medusa import demo
from medusa.core.checks import Prepack
from medusa.demo import smollm2
from medusa.evaluation.prompts import calibration_prompts
from medusa.hardware.timing import timed
from medusa.loading import MedusaModel, NamedModel, load
from medusa.text import encode_text

from .harness import (
    argument_parser,
    in_new_process,
    medians,
    new_report,
    parse_arguments,
    publish,
)
from .models import EMBEDDED_MODELS

RUNS = ("eager", "compiled, empty cache", "compiled, kept cache")
SMOLLM2 = "smollm2"
MODELS = (*EMBEDDED_MODELS, SMOLLM2)


def load_with_prompts(
    name: str, count: int, options: dict[str, Any]
) -> tuple[MedusaModel, list[list[int]]]:
    """Return a model of `MODELS` and the token ids of `count` prompts for it.

    Args:
        options: of loading.
    """
    if name != SMOLLM2:
        model, tokenizer = demo.load(inflate=EMBEDDED_MODELS[name], **options)
        return model, calibration_prompts(tokenizer, count)
    named = NamedModel.find(smollm2.heads_folder(), smollm2.fetch(), dtype="auto")
    model, tokenizer = load(named, **options)
    requests = [encode_text(tokenizer, text)[0].tolist() for text in smollm2.REQUESTS.values()]
    return model, [requests[number % len(requests)] for number in range(count)]


def answer_prompts(
    name: str, prepack: Prepack, run: str, cache: str, prompts: int, threads: int
) -> dict[str, float]:
    """Return the seconds of the first answer, and of each token of the answers after it.

    Args:
        name: one of `MODELS`.
        prepack: how weights are packed.
        run: one of `RUNS`.
        cache: folder of the compiler's cache.
        prompts: number of answers after the first.
        threads: CPU threads.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    torch.set_num_threads(threads)
    options = {"prepack": prepack, "compiled": run != "eager"}
    model, requests = load_with_prompts(name, prompts + 1, options)
    seconds, tokens = [], []
    for prompt in requests:
        ids = torch.tensor([prompt])
        answer = timed(partial(model.generate, ids, max_new_tokens=128, do_sample=False))
        tokens.append(answer.result.shape[1] - ids.shape[1])
        seconds.append(answer.seconds)
    return {"first": seconds[0], "token": sum(seconds[1:]) / sum(tokens[1:])}


def time_runs(name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return for each of `RUNS` the medians of `answer_prompts`, and when compiling has paid.

    The runs of a round share a cache folder and keep their order: the second one fills the cache
    that the third one finds.
    """
    seconds: dict[str, dict[str, list[float]]] = {run: {"first": [], "token": []} for run in RUNS}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for run in RUNS:
                answered = in_new_process(
                    answer_prompts,
                    name,
                    options.prepack,
                    run,
                    cache,
                    options.prompts,
                    options.threads,
                )
                for figure, value in answered.items():
                    seconds[run][figure].append(value)
    figures = {run: medians(values) for run, values in seconds.items()}
    eager = figures["eager"]
    for values in figures.values():
        saved = eager["token"] - values["token"]
        if saved > 0:
            values["pays_after_tokens"] = (values["first"] - eager["first"]) / saved
    return figures


def warm_up_table(models: dict[str, Any]) -> Table:
    """Return a table with a row for each model and run."""
    table = Table("model", "", "first answer, s", "ms a token after it", "tokens until it has paid")
    for name, figures in models.items():
        for run, values in figures.items():
            paid = values.get("pays_after_tokens")
            table.add_row(
                name,
                run,
                f"{values['first']:.1f}",
                f"{1000 * values['token']:.2f}",
                "-" if paid is None else f"{paid:.0f}",
            )
    return table


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__, rounds=2, rounds_help="processes of each kind")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=list(MODELS),
        help="models to measure (default: all)",
    )
    parser.add_argument("--prepack", choices=("half", "int4"), help="pack weights in fewer bits")
    parser.add_argument("--prompts", type=int, default=18, help="answers after the first")
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    models = {name: time_runs(name, options) for name in options.models}
    report = new_report(prepack=options.prepack, models=models)
    publish(options, report, "warm-up", warm_up_table(models))


if __name__ == "__main__":
    main()
