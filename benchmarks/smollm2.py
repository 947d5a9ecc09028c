"""`python -m benchmarks.smollm2 --questions FILE`: Medusa on SmolLM2-135M-Instruct.

The first turns of MT-Bench's 80 questions (FastChat, `llm_judge/data/mt_bench/question.jsonl`) are
answered by plain decoding, by transformers' `generate`, by Medusa with the stored tree and with a
tree of 64 nodes, and sampled with rejection and with typical acceptance, in turns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from medusa.core.tree import CandidateTree
from medusa.demo import smollm2
from medusa.evaluation.measure import Comparison, Prompt, compare
from medusa.evaluation.report import figures
from medusa.loading import MedusaModel, NamedModel, load
from medusa.text import encode_text

from .harness import argument_parser, new_report, parse_arguments, publish

LARGE = 64
"""Nodes of the tree that a GPU would verify."""
TYPICAL = {"acceptance": "typical", "temperature": 0.7, "do_sample": True}
REJECTION = {"acceptance": "rejection", "temperature": 0.7, "do_sample": True}


def questions(tokenizer: PreTrainedTokenizerBase, file: Path, limit: int | None) -> list[Prompt]:
    """Return the first turns of MT-Bench's questions, the first `limit` of each category."""
    prompts: list[Prompt] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        category, text = question["category"], question["turns"][0]
        if limit is None or sum(each.category == category for each in prompts) < limit:
            prompts.append(Prompt(category, text, encode_text(tokenizer, text)))
    return prompts


def large_tree(model: MedusaModel) -> CandidateTree:
    """Return the tree of `LARGE` nodes that the heads' accuracies predict to be the best."""
    return CandidateTree.from_accuracies(model.calibration.accuracies, LARGE)


def rows_of(
    method: str, temperature: float, comparisons: Sequence[Comparison]
) -> list[dict[str, Any]]:
    """Return a row for all prompts and one for each category."""
    found = figures(comparisons, greedy=not temperature)
    rows = []
    for category, summary in {"all": found["totals"], **found["categories"]}.items():
        rows.append(
            {
                "method": method,
                "temperature": temperature,
                "category": category,
                "tokens_per_step": summary["acceleration_rate"],
                "tokens_per_second": summary["tokens_per_second_with_prefill"]["medusa"],
                "speedup_over_plain": summary["speedup_over_plain_with_prefill"],
                "speedup_over_plain_spread": summary["speedup_over_plain_with_prefill_spread"],
                "speedup_over_generate": summary.get("speedup_over_generate_with_prefill"),
                "identical": summary["identical_prompts"],
                "prompts": summary["prompts"],
                "first_token_ms": summary["first_token_ms"],
                "overhead": summary["overhead"],
                "step_ms": summary["step_ms"],
                "plain_step_ms": summary["plain_step_ms"],
            }
        )
    return rows


def measure(
    model: MedusaModel,
    prompts: Sequence[Prompt],
    methods: dict[str, dict[str, Any]],
    console: Console,
    *,
    generate: bool,
    max_new_tokens: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Return the rows of several ways of decoding, which take turns with plain decoding.

    Args:
        methods: keyword arguments of `generate` for each.
        generate: compare with transformers' `generate`, too.
    """
    rows: list[dict[str, Any]] = []
    baselines = ("plain", "medusa", *(("generate",) if generate else ()))
    for method, own in methods.items():
        arguments = {"max_new_tokens": max_new_tokens, **own}
        for _ in compare(model, prompts[:2], arguments, methods=baselines, repeats=1):
            pass  # a warm-up, which does not count
        compared = compare(model, prompts, arguments, methods=baselines, repeats=repeats)
        comparisons = list(track(compared, method, total=len(prompts), console=console))
        rows += rows_of(method, own.get("temperature", 0.0), comparisons)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a printed table of rows."""
    headings = ("tokens / step", "tokens / s", "/ plain", "/ generate", "identical")
    shown = Table("", "T", "category", *headings, title="SmolLM2-135M-Instruct, MT-Bench")
    for row in rows:
        shown.add_row(
            row["method"],
            f"{row['temperature']:g}",
            row["category"],
            f"{row['tokens_per_step']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['speedup_over_plain']:.2f}",
            "" if row["speedup_over_generate"] is None else f"{row['speedup_over_generate']:.2f}",
            "" if row["identical"] is None else f"{row['identical']}/{row['prompts']}",
        )
    return shown


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__)
    parser.add_argument("--questions", type=Path, required=True, help="MT-Bench's question.jsonl")
    parser.add_argument("--limit", type=int, help="questions of each category (default: all)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="(default: 256)")
    parser.add_argument(
        "--dtype", default="auto", help="of the weights (default: the checkpoint's)"
    )
    parser.add_argument("--repeats", type=int, default=1, help="runs of each answer (default: 1)")
    parser.add_argument("--heads", type=Path, help="folder of heads (default: the package's)")
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options, console = parse_options(), Console(stderr=True)
    heads = options.heads or smollm2.heads_folder()
    named = NamedModel.find(heads, smollm2.fetch(say=console.print), dtype=options.dtype)
    model, tokenizer = load(named, all_heads=True)
    prompts = questions(tokenizer, options.questions, options.limit)
    settings = {"max_new_tokens": options.max_new_tokens, "repeats": options.repeats}
    greedy = {"do_sample": False}
    large = large_tree(model)
    rows = measure(model, prompts, {"Medusa": greedy}, console, generate=True, **settings)
    others = {
        f"Medusa, {LARGE} nodes": {**greedy, "tree": large},
        "Medusa, typical acceptance": TYPICAL,
        "Medusa, rejection": REJECTION,
    }
    rows += measure(model, prompts, others, console, generate=False, **settings)
    report = new_report(model=smollm2.HUB_ID, suite="mt-bench", rows=rows)
    publish(options, report, "smollm2", table(rows))


if __name__ == "__main__":
    main()
