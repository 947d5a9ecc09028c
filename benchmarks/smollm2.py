"""`python -m benchmarks.smollm2 --questions FILE`: Medusa on SmolLM2-135M-Instruct.

The first turns of MT-Bench's 80 questions (FastChat, `llm_judge/data/mt_bench/question.jsonl`) are
answered by plain decoding, by transformers' `generate`, by Medusa with the stored tree and with a
tree of 64 nodes, and sampled with rejection and with typical acceptance, in turns. transformers'
`generate` runs a model of its own in the checkpoint's dtype. llama.cpp takes part with
`--llama-server PROGRAM`; docs/serving.md says how to build it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from medusa.core.tree import CandidateTree
from medusa.demo import smollm2
from medusa.evaluation.bench import Bench, BenchSettings, run_bench
from medusa.evaluation.bench_report import Answered, figures, grouped
from medusa.evaluation.certificate import certificate
from medusa.evaluation.methods import METHODS, Method, medusa, transformers_run
from medusa.loading import MedusaModel, NamedModel, load

from .gguf_files import write_gguf
from .harness import (
    add_questions,
    argument_parser,
    first_turns,
    new_report,
    parse_arguments,
    publish_for_device,
)
from .llama_cpp import LOOKUP, LlamaCpp, llama_cpp

PLAIN = "plain"
MEDUSA = "Medusa"
TEMPERATURE = 0.7
"""Temperature of sampled answers."""
LARGE = 64
"""Nodes of the tree that a GPU would verify."""
GENERATE = "transformers generate"
"""It rounds in another dtype, so that its tokens are not compared."""
Q4_1 = "llama.cpp Q4_1"
"""The anchor: llama.cpp on the file that most people would run."""
TYPES = ("q8_0", "f16", "bf16")
"""Other types of weights that llama.cpp runs on."""


def large_tree(model: MedusaModel) -> CandidateTree:
    """Return the tree of `LARGE` nodes that the heads' accuracies predict to be the best."""
    return CandidateTree.from_accuracies(model.calibration.accuracies, LARGE)


def rows_of(method: str, temperature: float, answered: Sequence[Answered]) -> list[dict[str, Any]]:
    """Return a row for all turns that a method answered, and one for each category."""
    own = [each for each in answered if method in each.runs]
    groups = {"all": own, **grouped(own, lambda each: each.category)}
    return [row(method, temperature, name, turns) for name, turns in groups.items()]


def row(
    method: str, temperature: float, category: str, turns: Sequence[Answered]
) -> dict[str, Any]:
    """Return the figures of a method in a category, under the names of the published results."""
    found = figures(turns, method)
    speedups = {name: each["median"] for name, each in found["speedup_over"].items()}
    spread = found["speedup_over"].get(PLAIN)
    of_model = method.startswith(MEDUSA)
    return {
        "method": method,
        "temperature": temperature,
        "category": category,
        "tokens_per_step": found["tokens_per_step"],
        "tokens_per_second": found["tokens_per_second"],
        "speedup_over_plain": speedups.get(PLAIN),
        "speedup_over_plain_interval": spread and [spread["low"], spread["high"]],
        "speedup_over_generate": speedups.get(GENERATE),
        "over_llama_cpp_q4_1": speedups.get(Q4_1),
        "identical": found["identical"] if of_model and not temperature else None,
        "prompts": found["turns"],
        "first_token_ms": found["first_token_ms"],
        "step_ms": found["step_ms"],
    }


def llama_cpps(
    options: argparse.Namespace, stack: ExitStack, console: Console
) -> dict[str, LlamaCpp]:
    """Start llama.cpp on the same weights in several types."""
    stored = smollm2.fetch_gguf(console.print)
    base = LlamaForCausalLM.from_pretrained(smollm2.fetch())
    tokenizer = AutoTokenizer.from_pretrained(smollm2.fetch())
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

    def run(file: Path, *arguments: str) -> LlamaCpp:
        program, threads = options.llama_server, options.threads
        return stack.enter_context(llama_cpp(program, file, threads, arguments))

    found = {Q4_1: run(stored), f"{Q4_1}, prompt lookup": run(stored, *LOOKUP)}
    for kind in options.llama_cpp_types:
        write_gguf(base, folder / kind, kind, tokenizer)
        found[f"llama.cpp {kind.upper()}"] = run(folder / kind)
    return found


def transformers_method() -> Method:
    """Return transformers' `generate` on a model of its own, in the checkpoint's dtype."""
    base = AutoModelForCausalLM.from_pretrained(smollm2.fetch())
    return lambda model, prompt, arguments: transformers_run(base, prompt, arguments)


def way(**own: Any) -> Method:
    """Return Medusa decoding with arguments of its own."""
    return lambda model, prompt, arguments: medusa(model, prompt, {**arguments, **own})


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a printed table of rows."""
    headings = ("tokens / step", "tokens / s", "/ plain", "/ generate", "/ Q4_1", "identical")
    shown = Table("", "T", "category", *headings, title="SmolLM2-135M-Instruct, MT-Bench")
    for row in rows:
        names = ("tokens_per_step", "tokens_per_second", "speedup_over_plain")
        ratios = ("speedup_over_generate", "over_llama_cpp_q4_1")
        shown.add_row(
            row["method"],
            f"{row['temperature']:g}",
            row["category"],
            *("" if row.get(name) is None else f"{row[name]:.2f}" for name in (*names, *ratios)),
            "" if row.get("identical") is None else f"{row['identical']}/{row['prompts']}",
        )
    return shown


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__)
    add_questions(parser)
    parser.add_argument("--records", type=Path, help="folder from which a stopped run resumes")
    parser.add_argument(
        "--others-limit",
        type=int,
        help=f"questions of each category that other libraries and the tree of {LARGE} nodes "
        "answer, too (default: all)",
    )
    parser.add_argument("--dtype", default="auto", help="of the weights (default: auto)")
    parser.add_argument("--prepack", choices=("half", "int4"), help="pack weights in fewer bits")
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--greedy-only", action="store_true", help="do not sample")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each answer (default: 1)")
    parser.add_argument("--heads", type=Path, help="folder of heads (default: the package's)")
    parser.add_argument("--llama-server", metavar="PROGRAM", help="llama.cpp's server")
    parser.add_argument(
        "--llama-cpp-types",
        nargs="*",
        choices=TYPES,
        default=TYPES,
        help="types of llama.cpp's weights besides Q4_1 (default: all)",
    )
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options, console = parse_options(), Console(stderr=True)
    heads = options.heads or smollm2.heads_folder()
    named = NamedModel.find(heads, smollm2.fetch(say=console.print), dtype=options.dtype)
    how = {"prepack": options.prepack, "compiled": options.compile}
    model, tokenizer = load(named, all_heads=True, **how)
    new_bench = partial(Bench, model, tokenizer)
    rows = greedy_rows(new_bench, options, console)
    if not options.greedy_only:
        rows += sampled_rows(new_bench, options)
    dtype = str(model.dtype).removeprefix("torch.")
    report = new_report(model=smollm2.HUB_ID, suite="mt-bench", dtype=dtype, **how, rows=rows)
    part = "greedy" if options.greedy_only else None
    kind = "-".join(filter(None, ("smollm2", dtype, options.prepack, part)))
    publish_for_device(options, report, kind, table(rows))


def greedy_rows(
    new_bench: Callable[..., Bench], options: argparse.Namespace, console: Console
) -> list[dict[str, Any]]:
    """Return the rows of greedy decoding: Medusa, plain decoding and the others."""
    asked = first_turns(options.questions, options.limit)
    categories = {each.category for each in asked}
    beside = len(categories) * options.others_limit if options.others_limit else len(asked)
    settings = BenchSettings(options.max_new_tokens, rounds=options.repeats)
    ours = {PLAIN: METHODS["plain"], MEDUSA: way()}
    with ExitStack() as stack:
        libraries: dict[str, Any] = {GENERATE: transformers_method()}
        if options.llama_server is not None:
            libraries |= llama_cpps(options, stack, console)
        few = new_bench(ours, settings)
        large = {f"{MEDUSA}, {LARGE} nodes": way(tree=large_tree(few.model))}
        all_methods = new_bench({**ours, **large, **libraries}, settings)
        kept = records_of(options, "greedy")
        records = [
            *run_bench(all_methods, asked[:beside], *kept),
            *run_bench(few, asked[beside:], *kept),
        ]
    answered = Answered.of(records)
    rows = [row for name in all_methods.methods for row in rows_of(name, 0.0, answered)]
    medusa_row = next(row for row in rows if row["method"] == MEDUSA)
    medusa_row["certificate"] = certificate(few.model, records, MEDUSA, PLAIN)
    return rows


def sampled_rows(
    new_bench: Callable[..., Bench], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the rows of sampling: plainly, with typical acceptance and with rejection."""
    asked = first_turns(options.questions, options.limit)
    settings = BenchSettings(options.max_new_tokens, TEMPERATURE, options.repeats)
    ways = {f"{MEDUSA}, {name}": way(acceptance=name) for name in ("typical", "rejection")}
    bench = new_bench({PLAIN: METHODS["plain"], **ways}, settings)
    answered = Answered.of(run_bench(bench, asked, *records_of(options, "sampled")))
    return [row for name in bench.methods for row in rows_of(name, TEMPERATURE, answered)]


def records_of(options: argparse.Namespace, kind: str) -> tuple[Path | None, dict[str, Any]]:
    """Return the file of records of a kind of answers, and what they have in common."""
    described = {
        name: str(getattr(options, name))
        for name in ("questions", "max_new_tokens", "dtype", "prepack", "compile", "heads")
    }
    folder = options.records
    return None if folder is None else folder / f"{kind}.jsonl", described


if __name__ == "__main__":
    main()
