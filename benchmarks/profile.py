"""`python -m benchmarks.profile`: where a step's time goes, phase by phase and inside the base
model.

On the embedded model and on inflated ones (the same function at the cost of a larger model), with
linear layers as torch has them, packed, and with the packed ones in a compiled program.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedTokenizerBase

from medusa import demo
from medusa.core.acceptance import Greedy
from medusa.core.engine import PLAIN, decode
from medusa.core.request import DecodingStats, Row
from medusa.core.schedule import FixedTree
from medusa.core.tree import CandidateTree
from medusa.evaluation.report import results_folder, write_json
from medusa.hardware.provenance import provenance
from medusa.loading import MedusaModel

from .speed import INFLATED_WIDTH

WIDTHS: dict[str, int | None] = {
    "embedded": None,
    "30M": 6_200,
    "100M": INFLATED_WIDTH,
    "300M": 64_800,
}
"""MLP columns that make the embedded model as large as this."""
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {"prepack": False},
    "packed": {},
    "16 bits": {"prepack": "half"},
    "compiled": {"compiled": True},
    "compiled, 16 bits": {"compiled": True, "prepack": "half"},
}
"""How the linear layers run."""
PHASES = {
    "draft_logits": "heads",
    "draft": "draft selection",
    "verify": "base model",
    "accept": "acceptance",
    "keep": "cache keeping",
}
"""The calls of a step, and what they are called in the table; the rest is bookkeeping."""
PRODUCTS = ("mkldnn::_linear_pointwise", "quantized::linear_dynamic_fp16")
"""Of packed weights; without any, `DENSE`."""
DENSE = "aten::linear"
ATTENTION = "aten::scaled_dot_product_attention"


class Clocked:
    """Stands for an object and adds up the time of its calls; a cache that it lends is clocked,
    too.
    """

    def __init__(self, target: Any, seconds: dict[str, float]):
        self._target, self._seconds = target, seconds

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def clocked(*arguments: Any) -> Any:
            plain = [each._target if isinstance(each, Clocked) else each for each in arguments]
            started = time.perf_counter()
            result = value(*plain)
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started
            return self._lent(result) if name == "request_cache" else result

        return clocked

    @contextmanager
    def _lent(self, lending: AbstractContextManager[Any]) -> Iterator[Clocked]:
        with lending as cache:
            yield Clocked(cache, self._seconds)


def phases(
    model: MedusaModel, prompt: list[int], tree: CandidateTree, steps: int
) -> dict[str, float]:
    """Median milliseconds a step spends in each phase, `steps` steps in all."""
    seconds: dict[str, float] = {}
    stats = DecodingStats()
    row = Row(prompt, len(prompt) + (steps + 1) * (1 + tree.max_depth), lambda _: False)
    clocked: Any = Clocked(model, seconds)
    parts: list[dict[str, float]] = []
    for _ in decode(clocked, [row], Clocked(Greedy(), seconds), FixedTree(tree), stats):  # type: ignore[arg-type]
        parts.append({name: 1000 * seconds.get(name, 0.0) for name in PHASES})
        seconds.clear()
        if stats.steps == steps:
            break
    medians = {
        label: statistics.median(part[name] for part in parts[3:]) for name, label in PHASES.items()
    }
    whole = 1000 * statistics.median(stats.step_seconds[2:])
    return {**medians, "bookkeeping": whole - sum(medians.values()), "step": whole}


def inside(
    model: MedusaModel, prompt: list[int], tree: CandidateTree, steps: int = 20
) -> dict[str, float]:
    """Milliseconds a step spends in products, in attention and in other operators, and in Python
    between them.
    """
    stats = DecodingStats()
    row = Row(prompt, len(prompt) + (steps + 4) * (1 + tree.max_depth), lambda _: False)
    run = iter(decode(model, [row], Greedy(), FixedTree(tree), stats))
    for _ in range(4):
        next(run)
    before = stats.decoding_seconds
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            next(run)
    took = {event.key: event for event in recorded.key_averages()}
    total = sum(event.self_cpu_time_total for event in took.values())

    def of(name: str) -> float:
        return took[name].cpu_time_total if name in took else 0.0

    products, attention = sum(map(of, PRODUCTS)) or of(DENSE), of(ATTENTION)
    scale = 1e-3 / steps
    return {
        "products": products * scale,
        "attention": attention * scale,
        "other operators": (total - products - attention) * scale,
        "python and profiler": 1000 * (stats.decoding_seconds - before) / steps - total * scale,
    }


def tree_of(model: MedusaModel, nodes: int) -> CandidateTree:
    return CandidateTree.default(model.heads.config.num_heads, nodes) if nodes > 1 else PLAIN


def prompt_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Some thousand tokens of requests."""
    prompts = (tokenizer(task.prompt)["input_ids"] for task in demo.calibration_tasks(60))
    return list(itertools.chain.from_iterable(prompts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--nodes", nargs="+", type=int, default=[1, 8, 16])
    parser.add_argument("--contexts", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs of so many steps, weights by turns"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=results_folder, default="benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=150)
    report: dict[str, Any] = {"provenance": provenance(), "phases": {}, "inside": {}}
    labels = ("model", "weights", "context", "nodes")
    shown = Table(*labels, *PHASES.values(), "bookkeeping", "step ms", "besides the model")
    within = Table(*labels, "products", "attention", "other operators", "python and profiler")
    for name in options.models:
        loaded = {
            variant: demo.load(inflate=WIDTHS[name], **VARIANTS[variant])
            for variant in options.variants
        }
        text = prompt_tokens(loaded[options.variants[0]][1])
        points = list(itertools.product(options.variants, options.contexts, options.nodes))
        rounds: dict[Any, list[dict[str, float]]] = {point: [] for point in points}
        for point in points * options.rounds:
            variant, context, nodes = point
            model = loaded[variant][0]
            rounds[point].append(
                phases(model, text[:context], tree_of(model, nodes), options.steps)
            )
        for point, found in rounds.items():
            variant, context, nodes = point
            at = (name, variant, str(context), str(nodes))
            key = f"{name}, {variant}, context {context}, {nodes} nodes"
            took = {phase: statistics.median(each[phase] for each in found) for phase in found[0]}
            report["phases"][key] = took
            besides = 1 - (took["heads"] + took["base model"]) / took["step"]
            shown.add_row(*at, *(f"{value:.2f}" for value in took.values()), f"{besides:.1%}")
            model = loaded[variant][0]
            if not model.compiled:  # whose operators the profiler does not see
                report["inside"][key] = parts = inside(model, text[:context], tree_of(model, nodes))
                within.add_row(*at, *(f"{value:.2f}" for value in parts.values()))
    console.print(shown)
    console.print(within)
    console.print(f"written to {write_json(options.output, report, 'profile')}")


if __name__ == "__main__":
    main()
