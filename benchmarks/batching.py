"""`python -m benchmarks.batching`: answers a second when requests join as others end.

The same requests, whose answers have very different lengths, are decoded in two ways by turns: in
batches that end with their longest answer, and with continuous batching, where a request joins as
soon as a row is free.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rich.table import Table

from medusa import demo
from medusa.core.engine import Engine
from medusa.core.request import Request, Row
from medusa.evaluation.prompts import calibration_prompts
from medusa.generation import prepare
from medusa.hardware.timing import Timed, interleaved, paired_ratios, spread, timed
from medusa.loading import MedusaModel

from .harness import argument_parser, new_report, parse_arguments, publish, seconds_of
from .models import EMBEDDED_MODELS

WAYS = ("batches", "continuous")
"""Batches that wait for their longest answer, and continuous batching."""


def requests_of(model: MedusaModel, tokenizer: Any, count: int, longest: int) -> list[Request]:
    """Return greedy requests of the demo's tasks whose answers have very different lengths.

    An answer ends where the model ends it, or at a limit between 8 and `longest` new tokens, drawn
    evenly on a logarithmic scale.
    """
    draw, sessions = random.Random(0), []
    for ids in calibration_prompts(tokenizer, count):
        limit = round(8 * (longest / 8) ** draw.random())
        prompt = torch.tensor([ids])
        sessions.append(prepare(model, prompt, max_new_tokens=limit, do_sample=False))
    # without a schedule of its own a request takes the engine's, which learns from all of them
    return [replace(session.requests[0], schedule=None) for session in sessions]


def decode(engine: Engine, requests: Sequence[Request]) -> list[Row]:
    """Decode requests until all have ended."""
    rows = [engine.submit(request) for request in requests]
    while not engine.idle:
        engine.step()
    return rows


def decode_in_batches(model: MedusaModel, requests: Sequence[Request], size: int) -> list[Row]:
    """Decode requests batch by batch; the next batch begins when the last answer has ended."""
    engine = Engine(model, max_rows=size)
    batches = [requests[begin : begin + size] for begin in range(0, len(requests), size)]
    return [row for batch in batches for row in decode(engine, batch)]


def decode_continuously(model: MedusaModel, requests: Sequence[Request], size: int) -> list[Row]:
    """Decode requests so that each joins as soon as a row is free."""
    return decode(Engine(model, max_rows=size), requests)


def compare_ways(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one model."""
    model, tokenizer = demo.load(inflate=EMBEDDED_MODELS[name])
    requests = requests_of(model, tokenizer, options.requests, options.max_new_tokens)
    ways = {"batches": decode_in_batches, "continuous": decode_continuously}
    calls: dict[str, Callable[[], Timed[list[Row]]]] = {
        way: partial(timed, partial(decode_rows, model, requests, options.batch_size))
        for way, decode_rows in ways.items()
    }
    decode_continuously(model, requests[: options.batch_size], options.batch_size)  # warm-up
    runs = interleaved(calls, options.rounds)
    texts = {way: [row.ids for row in turns[0].result] for way, turns in runs.items()}
    lengths = [len(row.ids) - len(row.request.ids) for row in runs["batches"][0].result]
    seconds = seconds_of(runs)
    ratios = paired_ratios(seconds["batches"], seconds["continuous"])
    return {
        "parameters": sum(each.numel() for each in model.base.parameters()),
        "tokens": sum(lengths),
        "answer_tokens": {
            "shortest": min(lengths),
            "median": statistics.median(lengths),
            "longest": max(lengths),
        },
        "identical": sum(one == other for one, other in zip(*texts.values(), strict=True)),
        "tokens_per_second": {way: sum(lengths) / statistics.median(seconds[way]) for way in WAYS},
        "speedup": statistics.median(ratios),
        "speedup_spread": spread(ratios),
    }


def table_of(models: dict[str, Any], options: argparse.Namespace) -> Table:
    """Return a table with a row for each model."""
    table = Table(
        "model",
        "answers, tokens",
        "batches tok/s",
        "continuous tok/s",
        "speedup",
        "identical",
        title=f"{options.requests} requests, {options.batch_size} rows",
        title_justify="left",
    )
    for name, result in models.items():
        lengths, rates = result["answer_tokens"], result["tokens_per_second"]
        low, high = result["speedup_spread"]
        table.add_row(
            name,
            f"{lengths['shortest']} to {lengths['longest']}, median {lengths['median']:g}",
            f"{rates['batches']:.0f}",
            f"{rates['continuous']:.0f}",
            f"{result['speedup']:.2f} ({low:.2f} to {high:.2f})",
            f"{result['identical']} of {options.requests}",
        )
    return table


def main() -> None:
    """Run the benchmark."""
    parser = argument_parser(__doc__, rounds=3, rounds_help="runs of all requests in each way")
    parser.add_argument(
        "--models", nargs="+", choices=EMBEDDED_MODELS, default=list(EMBEDDED_MODELS), help="models"
    )
    parser.add_argument("--requests", type=int, default=200, help="requests (default: 200)")
    parser.add_argument("--batch-size", type=int, default=32, help="rows (default: 32)")
    parser.add_argument("--max-new-tokens", type=int, default=320, help="default: 320")
    options = parse_arguments(parser)
    models = {name: compare_ways(name, options) for name in options.models}
    report = new_report(requests=options.requests, batch_size=options.batch_size, models=models)
    publish(options, report, "batching", table_of(models, options))


if __name__ == "__main__":
    main()
