"""`python -m benchmarks.smollm2 --questions FILE`: Medusa on SmolLM2-135M-Instruct.

The first turns of MT-Bench's 80 questions (FastChat, `llm_judge/data/mt_bench/question.jsonl`) are
answered by plain decoding, by transformers' `generate`, by Medusa with the stored tree and with a
tree of 64 nodes, and sampled with rejection and with typical acceptance, in turns. transformers'
`generate` runs a model of its own in the checkpoint's dtype. llama.cpp takes part with
`--llama-cpp FOLDER`, after `npm install node-llama-cpp --ignore-scripts` in that folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from medusa.core.tree import CandidateTree
from medusa.demo import smollm2
from medusa.evaluation.measure import Comparison, Prompt, Totals, compare
from medusa.evaluation.methods import Method, medusa, transformers_run
from medusa.evaluation.report import figures
from medusa.loading import MedusaModel, NamedModel, load
from medusa.text import encode_text

from .gguf_files import write_gguf
from .harness import argument_parser, new_report, parse_arguments, publish_for_device
from .llama_cpp import LlamaCpp

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


def questions(tokenizer: PreTrainedTokenizerBase, file: Path, limit: int | None) -> list[Prompt]:
    """Return the first turns of MT-Bench's questions, one of each category in turn.

    Args:
        limit: number of questions of each category; None is all.
    """
    by_category: dict[str, list[Prompt]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        category, text = question["category"], question["turns"][0]
        prompt = Prompt(category, text, encode_text(tokenizer, text))
        by_category.setdefault(category, []).append(prompt)
    turns = itertools.zip_longest(*(prompts[:limit] for prompts in by_category.values()))
    return [prompt for turn in turns for prompt in turn if prompt is not None]


def large_tree(model: MedusaModel) -> CandidateTree:
    """Return the tree of `LARGE` nodes that the heads' accuracies predict to be the best."""
    return CandidateTree.from_accuracies(model.calibration.accuracies, LARGE)


@torch.inference_mode()
def divergences(model: MedusaModel, comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return where Medusa's greedy answers leave those of plain decoding, and by what margin.

    The margin is the difference between the model's logits of the two tokens there. Where it is
    within the rounding of the dtype, rounding explains the difference.
    """
    found = []
    for comparison in comparisons:
        plain, drafted = (comparison.runs[name][0].ids for name in ("plain", MEDUSA))
        pairs = enumerate(zip(plain, drafted, strict=False))
        place = next((place for place, (one, other) in pairs if one != other), None)
        if place is None:
            continue
        answer = torch.tensor([plain[:place]], dtype=torch.long)
        text = torch.cat([comparison.prompt.ids, answer], 1)
        logits = model.base_logits(model.hidden_states(text)[0, -1]).float()
        margin = float((logits[plain[place]] - logits[drafted[place]]).abs())
        found.append({"category": comparison.prompt.category, "token": place, "margin": margin})
    return found


def rows_of(
    method: str, temperature: float, answers: Sequence[Comparison], with_others: int
) -> list[dict[str, Any]]:
    """Return a row for all prompts and one for each category.

    Args:
        with_others: number of the first answers in which other libraries took part; speedups over
            them are of these.
    """
    comparisons = [as_medusa(each, method) for each in answers]
    found = by_category(comparisons, greedy=not temperature)
    beside = by_category(comparisons[:with_others], greedy=not temperature)
    return [
        {
            "method": method,
            "temperature": temperature,
            "category": category,
            "tokens_per_step": summary["acceleration_rate"],
            "tokens_per_second": summary["tokens_per_second_with_prefill"]["medusa"],
            "speedup_over_plain": summary["speedup_over_plain_with_prefill"],
            "speedup_over_plain_spread": summary["speedup_over_plain_with_prefill_spread"],
            "speedup_over_generate": speedup_over(GENERATE, beside.get(category)),
            "over_llama_cpp_q4_1": speedup_over(Q4_1, beside.get(category)),
            "identical": summary["identical_prompts"],
            "prompts": summary["prompts"],
            "first_token_ms": summary["first_token_ms"],
            "overhead": summary["overhead"],
            "step_ms": summary["step_ms"],
            "plain_step_ms": summary["plain_step_ms"],
        }
        for category, summary in found.items()
    ]


def as_medusa(answers: Comparison, method: str) -> Comparison:
    """Return the runs without other ways of Medusa decoding; those of `method` are "medusa"."""
    runs = {name: runs for name, runs in answers.runs.items() if not name.startswith("Medusa")}
    return Comparison(answers.prompt, {**runs, "medusa": answers.runs[method]})


def by_category(comparisons: Sequence[Comparison], greedy: bool) -> dict[str, dict[str, Any]]:
    """Return the figures of all prompts ("all") and of each category; nothing of no prompts."""
    if not comparisons:
        return {}
    found = figures(comparisons, greedy=greedy)
    return {"all": found["totals"], **found["categories"]}


def speedup_over(method: str, summary: Mapping[str, Any] | None) -> float | None:
    """Return Medusa's speedup over a method, prefill included; None if it did not take part."""
    return None if summary is None else summary.get(f"speedup_over_{method}_with_prefill")


def rows_of_others(names: Sequence[str], comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return a row for each method that is not Medusa: its speed over plain decoding."""
    totals = Totals(list(comparisons))
    plain = totals.rate_with_prefill("plain")
    return [
        {
            "method": name,
            "temperature": 0.0,
            "category": "all",
            "tokens_per_second": totals.rate_with_prefill(name),
            "speedup_over_plain": totals.rate_with_prefill(name) / plain,
            "prompts": len(comparisons),
            "first_token_ms": {name: 1000 * totals.first_token_seconds(name)},
        }
        for name in names
    ]


def llama_cpps(options: argparse.Namespace, folder: Path, console: Console) -> dict[str, LlamaCpp]:
    """Return llama.cpp on the same weights in several types; GGUF files are written to a folder."""
    stored = smollm2.fetch_gguf(console.print)
    base = LlamaForCausalLM.from_pretrained(smollm2.fetch())
    runner = partial(LlamaCpp, options.llama_cpp, threads=options.threads)
    found = {Q4_1: runner(stored), f"{Q4_1}, prompt lookup": runner(stored, lookup=True)}
    tokenizer = AutoTokenizer.from_pretrained(smollm2.fetch())
    for kind in options.llama_cpp_types:
        write_gguf(base, folder / kind, kind, tokenizer)
        found[f"llama.cpp {kind.upper()}"] = runner(folder / kind)
    return found


def transformers_method() -> Method:
    """Return transformers' `generate` on a model of its own, in the checkpoint's dtype."""
    base = AutoModelForCausalLM.from_pretrained(smollm2.fetch())
    return lambda model, prompt, arguments: transformers_run(base, prompt, arguments)


def way(**own: Any) -> Method:
    """Return Medusa decoding with arguments of its own."""
    return lambda model, prompt, arguments: medusa(model, prompt, {**arguments, **own})


def measure(
    model: MedusaModel,
    prompts: Sequence[Prompt],
    arguments: dict[str, Any],
    ways: Mapping[str, Method],
    others: Mapping[str, Method],
    with_others: int,
    console: Console,
    repeats: int,
) -> list[Comparison]:
    """Return the answers of plain decoding, of ways of Medusa decoding and of other methods.

    All take turns on each prompt.

    Args:
        arguments: keyword arguments of `generate`, the same for all.
        others: slow methods and those of other libraries.
        with_others: number of the first prompts that `others` answer, too.
    """
    compared = partial(compare, model, arguments=arguments, methods=("plain",))
    everything = {**ways, **others}
    for _ in compared(prompts=prompts[:2], others=everything, repeats=1):
        pass  # a warm-up, which does not count
    first, rest = prompts[:with_others], prompts[with_others:]
    answers = itertools.chain(
        compared(prompts=first, others=everything, repeats=repeats),
        compared(prompts=rest, others=ways, repeats=repeats),
    )
    return list(track(answers, ", ".join(ways), total=len(prompts), console=console))


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
    parser.add_argument("--questions", type=Path, required=True, help="MT-Bench's question.jsonl")
    parser.add_argument("--limit", type=int, help="questions of each category (default: all)")
    parser.add_argument(
        "--others-limit",
        type=int,
        help=f"questions of each category that other libraries and the tree of {LARGE} nodes "
        "answer, too (default: all)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, help="(default: 256)")
    parser.add_argument("--dtype", default="auto", help="of the weights (default: auto)")
    parser.add_argument("--prepack", choices=("half", "int4"), help="pack weights in fewer bits")
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--greedy-only", action="store_true", help="do not sample")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each answer (default: 1)")
    parser.add_argument("--heads", type=Path, help="folder of heads (default: the package's)")
    parser.add_argument("--llama-cpp", type=Path, help="folder with node-llama-cpp")
    parser.add_argument(
        "--llama-cpp-types",
        nargs="*",
        choices=TYPES,
        default=TYPES,
        help="types of llama.cpp's weights besides Q4_1 (default: all)",
    )
    return parse_arguments(parser)


def greedy_rows(
    model: MedusaModel, prompts: Sequence[Prompt], options: argparse.Namespace, console: Console
) -> list[dict[str, Any]]:
    """Return the rows of greedy decoding: Medusa, plain decoding and the others."""
    arguments = {"do_sample": False, "max_new_tokens": options.max_new_tokens}
    categories = {each.category for each in prompts}
    beside = len(categories) * options.others_limit if options.others_limit else len(prompts)
    large = f"{MEDUSA}, {LARGE} nodes"
    with tempfile.TemporaryDirectory() as folder:
        libraries: dict[str, Any] = {GENERATE: transformers_method()}
        if options.llama_cpp is not None:
            libraries |= llama_cpps(options, Path(folder), console)
        others = {large: way(tree=large_tree(model)), **libraries}
        answers = measure(
            *(model, prompts, arguments, {MEDUSA: way()}, others, beside, console),
            repeats=options.repeats,
        )
        for method in libraries.values():
            getattr(method, "close", lambda: None)()
    rows = rows_of(MEDUSA, 0.0, answers, beside)
    rows[0]["divergences"] = divergences(model, answers)
    rows += rows_of_others(["plain"], answers)
    rows += rows_of_others(list(libraries), answers[:beside])
    return rows + rows_of(large, 0.0, answers[:beside], beside)


def sampled_rows(
    model: MedusaModel, prompts: Sequence[Prompt], options: argparse.Namespace, console: Console
) -> list[dict[str, Any]]:
    """Return the rows of sampling with typical acceptance and with rejection."""
    arguments = {
        "do_sample": True,
        "temperature": TEMPERATURE,
        "max_new_tokens": options.max_new_tokens,
    }
    ways = {f"{MEDUSA}, {name}": way(acceptance=name) for name in ("typical", "rejection")}
    answers = measure(model, prompts, arguments, ways, {}, 0, console, repeats=options.repeats)
    return [row for name in ways for row in rows_of(name, TEMPERATURE, answers, 0)]


def main() -> None:
    """Run the benchmark."""
    options, console = parse_options(), Console(stderr=True)
    heads = options.heads or smollm2.heads_folder()
    named = NamedModel.find(heads, smollm2.fetch(say=console.print), dtype=options.dtype)
    how = {"prepack": options.prepack, "compiled": options.compile}
    model, tokenizer = load(named, all_heads=True, **how)
    prompts = questions(tokenizer, options.questions, options.limit)
    rows = greedy_rows(model, prompts, options, console)
    if not options.greedy_only:
        rows += sampled_rows(model, prompts, options, console)
    dtype = str(model.dtype).removeprefix("torch.")
    report = new_report(model=smollm2.HUB_ID, suite="mt-bench", dtype=dtype, **how, rows=rows)
    kind = "-".join(filter(None, ("smollm2", dtype, options.prepack)))
    publish_for_device(options, report, kind, table(rows))


if __name__ == "__main__":
    main()
