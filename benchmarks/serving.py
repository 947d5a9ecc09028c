"""`python -m benchmarks.serving`: throughput and latency of `medusa serve` under load.

The same prompts are sent by 1, 4, 16 and 64 clients at a time, with Medusa and plainly in turns:
tasks of the embedded model, or with `--questions` the first turns of MT-Bench's questions
(FastChat, `llm_judge/data/mt_bench/question.jsonl`) for SmolLM2. With one client,
`MedusaModel.generate` in this process takes its turn, too: the difference is the cost of scheduler
and HTTP. transformers' own server takes part with `--transformers`, and llama.cpp's with
`--llama-server PROGRAM` (SmolLM2 only). `--url NAME=URL` measures a server that runs already.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from medusa import demo
from medusa.cli.models import load
from medusa.cli.options import ModelOptions
from medusa.core.engine import PLAIN
from medusa.demo import smollm2
from medusa.evaluation.methods import Run, medusa
from medusa.evaluation.prompts import task_questions
from medusa.evaluation.suites import Question
from medusa.hardware.timing import interleaved, paired_ratios, spread, timed
from medusa.text import encode_text

from .harness import argument_parser, first_turns, new_report, parse_arguments, publish_for_device
from .llama_cpp import CONTEXT
from .load import Answered, Endpoint, Load, run_load
from .models import INFLATED_WIDTH
from .servers import llama_server, medusa_server, program, started, transformers_server

MODELS = ("demo", "inflated", "smollm2")
SERVER, GENERATE = "medusa serve", "generate"
MEDUSA, PLAIN_METHOD = "medusa", "plain"
METHODS: dict[str, dict[str, Any]] = {MEDUSA: {}, PLAIN_METHOD: {"medusa": {"enabled": False}}}
"""Fields of a request that choose each method."""
BLOCKS = 2048
"""Blocks of the cache of transformers' server: 32 for each of 64 requests, or 1,024 tokens."""

Name = tuple[str, str]
"""Names of a server and of a method."""


@dataclass(frozen=True)
class Served:
    """A model to serve.

    Attributes:
        options: choose it in the commands of `medusa`.
        base: folder of its base model.
        prompts: what clients send.
    """

    name: str
    options: ModelOptions
    base: Path
    prompts: Sequence[str]

    @property
    def arguments(self) -> list[str]:
        """Arguments of `medusa serve` that choose the model."""
        chosen, found = self.options, [self.options.model]
        for name in ("base", "dtype", "prepack"):
            if (value := getattr(chosen, name)) is not None:
                found += [f"--{name}", value]
        if chosen.compile is not None:
            found.append("--compile" if chosen.compile else "--no-compile")
        return [*found, "--name", self.name]


@contextmanager
def served(name: str, options: argparse.Namespace) -> Iterator[Served]:
    """Give a model by its name; the inflated one is written to a temporary folder."""
    how = {"prepack": options.prepack, "compile": options.compile}
    asked: Sequence[Question] = task_questions(16)
    if name == "smollm2":
        asked = first_turns(options.questions, None)
    prompts = [str(each.messages[0]["content"]) for each in asked]
    with tempfile.TemporaryDirectory() as temporary:
        base, chosen = demo.FOLDER / "base", ModelOptions(model="demo", dtype="float32", **how)
        if name == "inflated":
            base = Path(temporary)
            model, tokenizer = demo.load(inflate=INFLATED_WIDTH)
            model.base.save_pretrained(base)
            tokenizer.save_pretrained(base)
            heads = str(demo.heads_folder())
            chosen = ModelOptions(model=heads, base=str(base), dtype="float32", **how)
        elif name == "smollm2":
            base, chosen = smollm2.fetch(), ModelOptions(model=name, dtype=options.dtype, **how)
        yield Served(name, chosen, base, prompts)


def endpoints(
    model: Served, options: argparse.Namespace, stack: ExitStack, say: Callable[[str], None]
) -> list[Endpoint]:
    """Start the servers of a model; return where they answer."""
    run = partial(started, threads=options.threads)
    rows = max(options.concurrency)
    ours = stack.enter_context(run(medusa_server(model.arguments, rows))).address
    found = [Endpoint(SERVER, way, ours, model.name, METHODS[way]) for way in METHODS]
    if options.transformers:
        path = program("transformers")
        if path is None:
            say("transformers' server is left out: there is no program named transformers")
        else:
            dtype = "bfloat16" if model.name == "smollm2" else "float32"
            command = transformers_server(path, model.base, dtype, BLOCKS)
            address = stack.enter_context(run(command)).address
            found.append(Endpoint("transformers serve", dtype, address, str(model.base)))
    if options.llama_server is not None and model.name == "smollm2":
        path = program(options.llama_server)
        if path is None:
            say(f"llama.cpp's server is left out: there is no program {options.llama_server}")
        else:
            file = smollm2.fetch_gguf(say)
            command = llama_server(path, file, options.threads, rows, CONTEXT)
            address = stack.enter_context(run(command)).address
            found.append(Endpoint("llama-server", "Q4_1", address, "any"))
    return [*found, *(running(each) for each in options.url)]


def running(named: str) -> Endpoint:
    """Return a server that runs already, from NAME=URL; its model is the first that it lists."""
    name, _, address = named.partition("=")
    address = address.rstrip("/").removesuffix("/v1")
    listed = httpx2.get(f"{address}/v1/models").raise_for_status().json()
    return Endpoint(name, "as served", address, listed["data"][0]["id"])


def generators(model: Served, max_tokens: int) -> dict[Name, Callable[[Sequence[str]], Load]]:
    """Return functions that answer prompts with `generate`, one after the other."""
    loaded, tokenizer = load(model.options)

    def answered(arguments: dict[str, Any], prompts: Sequence[str]) -> Load:
        def answer(prompt: str) -> Answered:
            ids = encode_text(tokenizer, prompt)
            run: Run = medusa(loaded, ids, arguments)
            return Answered(run.length, run.prefill_seconds, run.total_seconds)

        all_answers = timed(lambda: [answer(prompt) for prompt in prompts])
        return Load(all_answers.result, all_answers.seconds)

    greedy = {"max_new_tokens": max_tokens, "do_sample": False}
    return {
        (GENERATE, MEDUSA): partial(answered, greedy),
        (GENERATE, PLAIN_METHOD): partial(answered, {**greedy, "tree": PLAIN}),
    }


def measure(model: Served, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Return the rows of a model at all concurrencies, and the cost of its server."""
    rows: list[dict[str, Any]] = []
    costs: dict[str, Any] = {}
    in_process = generators(model, options.max_new_tokens) if 1 in options.concurrency else {}
    with ExitStack() as stack:
        found = endpoints(model, options, stack, console.print)
        for concurrency in options.concurrency:
            count = max(options.requests, 2 * concurrency)
            prompts = list(islice(cycle(model.prompts), count))
            calls: dict[Name, Callable[[Sequence[str]], Load]] = {
                (each.server, each.method): partial(
                    run_load, each, concurrency=concurrency, max_tokens=options.max_new_tokens
                )
                for each in found
            }
            calls |= in_process if concurrency == 1 else {}
            for call in calls.values():  # warm-up
                call(prompts[:concurrency])
            runs = interleaved(
                {name: partial(call, prompts) for name, call in calls.items()}, options.rounds
            )
            rows += [row(model.name, name, concurrency, runs) for name in runs]
            if concurrency == 1:
                costs = {way: cost(runs[SERVER, way], runs[GENERATE, way]) for way in METHODS}
            console.print(f"{model.name}: {concurrency} at a time measured")
    return {"rows": rows, "cost": costs}


def row(
    model: str, name: Name, concurrency: int, runs: Mapping[Name, Sequence[Load]]
) -> dict[str, Any]:
    """Return a published row: medians over rounds, with the spread of throughput and speedup."""
    rounds = [load.figures() for load in runs[name]]
    rates = [each["tokens_per_second"] for each in rounds]
    plain = [load.figures()["tokens_per_second"] for load in runs[SERVER, PLAIN_METHOD]]
    ratios = paired_ratios(rates, plain)
    return {
        "server": name[0],
        "model": model,
        "method": name[1],
        "concurrency": concurrency,
        **{figure: statistics.median(each[figure] for each in rounds) for figure in rounds[0]},
        "tokens_per_second_spread": spread(rates),
        "over_plain": statistics.median(ratios),
        "over_plain_spread": spread(ratios),
        "requests": len(runs[name][0].answers),
        "tokens": runs[name][0].tokens,
    }


def cost(server: Sequence[Load], generate: Sequence[Load]) -> dict[str, Any]:
    """Return by how many percent a token takes longer at the server than with `generate`."""
    per_token = [[each.seconds / each.tokens for each in loads] for loads in (server, generate)]
    percent = [100 * (ratio - 1) for ratio in paired_ratios(*per_token)]
    return {"percent": statistics.median(percent), "spread": spread(percent)}


def tables(report: dict[str, Any]) -> list[Table | str]:
    """Return the printed form of a report."""
    headings = ("tok/s", "/ plain", "first token ms", "ms a token p50", "p95")
    table = Table("model", "clients", "server", "method", *headings)
    for each in report["rows"]:
        low, high = each["over_plain_spread"]
        table.add_row(
            each["model"],
            str(each["concurrency"]),
            each["server"],
            each["method"],
            f"{each['tokens_per_second']:.1f}",
            f"{each['over_plain']:.2f} ({low:.2f} to {high:.2f})",
            *(f"{each[name]:.1f}" for name in ("ttft_ms", "itl_p50_ms", "itl_p95_ms")),
        )
    lines = [
        f"{model}, {way}: a token takes {each['percent']:+.1f} % at the server against generate "
        f"({each['spread'][0]:+.1f} to {each['spread'][1]:+.1f} %)"
        for model, ways in report["cost_over_generate"].items()
        for way, each in ways.items()
    ]
    return [table, *lines]


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__, rounds=3, rounds_help="turns of each method")
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=["demo", "inflated"])
    add("--concurrency", nargs="+", type=int, default=[1, 4, 16, 64], help="clients at a time")
    add("--requests", type=int, default=16, help="requests a turn, at least two for each client")
    add("--max-new-tokens", type=int, default=128, help="(default: 128)")
    add("--questions", help="MT-Bench's question.jsonl, for smollm2")
    add("--dtype", default="auto", help="of SmolLM2's weights (default: auto)")
    add("--prepack", choices=("half", "int4"), help="pack weights in fewer bits")
    compiling = "compile the steps (default: as the calibration found faster)"
    add("--compile", action=argparse.BooleanOptionalAction, help=compiling)
    add("--transformers", action="store_true", help="measure transformers' server, too")
    add("--llama-server", metavar="PROGRAM", help="measure llama.cpp's server, too")
    add("--url", action="append", default=[], metavar="NAME=URL", help="another server")
    options = parse_arguments(parser)
    if "smollm2" in options.models and options.questions is None:
        parser.error("smollm2 answers MT-Bench's questions: pass --questions FILE")
    return options


def main() -> None:
    """Run the benchmark."""
    options, console = parse_options(), Console(stderr=True)
    rows: list[dict[str, Any]] = []
    costs = {}
    for name in options.models:
        with served(name, options) as model:
            found = measure(model, options, console)
        rows += found["rows"]
        costs[name] = found["cost"]
    names = ("rounds", "max_new_tokens", "dtype", "prepack", "compile")
    settings = {name: getattr(options, name) for name in names}
    report = new_report(**settings, rows=rows, cost_over_generate=costs)
    publish_for_device(options, report, "-".join(("serving", *options.models)), *tables(report))


if __name__ == "__main__":
    main()
