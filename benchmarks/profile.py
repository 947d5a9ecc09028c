"""`python -m benchmarks.profile`: the time of a step by phase, and inside the base model.

It runs on the embedded model and on inflated ones (the same function at the cost of a larger
model), with linear layers as torch has them, packed, and packed in a compiled program.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedTokenizerBase

from medusa import demo
from medusa.core.engine import PLAIN, Engine
from medusa.core.request import Request, StepTiming
from medusa.core.schedule import FixedTree
from medusa.core.tree import CandidateTree
from medusa.hardware.timing import interleaved
from medusa.loading import MedusaModel

from .harness import argument_parser, medians, new_report, parse_arguments, publish
from .models import INFLATED_WIDTH

WIDTHS: dict[str, int | None] = {
    "embedded": None,
    "30M": 6_200,
    "100M": INFLATED_WIDTH,
    "300M": 64_800,
}
"""MLP columns that inflate the embedded model to this number of parameters."""
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {"prepack": False},
    "packed": {},
    "16 bits": {"prepack": "half"},
    "compiled": {"compiled": True},
    "compiled, 16 bits": {"compiled": True, "prepack": "half"},
}
"""How the linear layers run: arguments of `demo.load`."""
PHASES = {
    "heads": "heads",
    "draft": "draft selection",
    "verify": "base model",
    "accept": "acceptance",
    "keep": "cache keeping",
}
"""Phases of a step, and their names in the table; all other time is bookkeeping."""
PRODUCTS = ("mkldnn::_linear_pointwise", "quantized::linear_dynamic_fp16")
"""Operators that multiply packed weights; without any of them, `DENSE` multiplies."""
DENSE = "aten::linear"
ATTENTION = "aten::scaled_dot_product_attention"
WIDTH = 150


@dataclass(frozen=True)
class Setting:
    """Conditions of a timed step: how layers run, context length in tokens, nodes of the tree."""

    variant: str
    context: int
    nodes: int

    def key(self, model: str) -> str:
        """Return the setting's key in the report."""
        return f"{model}, {self.variant}, context {self.context}, {self.nodes} nodes"

    def cells(self, model: str) -> tuple[str, ...]:
        """Return the first cells of the setting's row in a table."""
        return model, self.variant, str(self.context), str(self.nodes)


def decoding(
    model: MedusaModel, prompt: list[int], tree: CandidateTree, steps: int
) -> Iterator[StepTiming]:
    """Decode greedily; yield the timing of each of `steps` steps."""
    length = len(prompt) + (steps + 1) * (1 + tree.max_depth)
    engine = Engine(model)
    engine.submit(Request(prompt, length, schedule=FixedTree(tree)))
    engine.step()  # the prefill
    for _ in range(steps):
        yield from (event.timing for event in engine.step() if event.timing is not None)
    engine.close()


def phase_milliseconds(
    model: MedusaModel, prompt: list[int], tree: CandidateTree, steps: int
) -> dict[str, float]:
    """Decode `steps` steps and return the median milliseconds of each phase and of a step."""
    # the first two steps also pack, compile and allocate
    timings = list(decoding(model, prompt, tree, steps))[2:]
    phases = {
        label: 1000 * statistics.median(timing.phases[name] for timing in timings)
        for name, label in PHASES.items()
    }
    whole = 1000 * statistics.median(timing.seconds for timing in timings)
    return {**phases, "bookkeeping": whole - sum(phases.values()), "step": whole}


def operator_milliseconds(
    model: MedusaModel, prompt: list[int], tree: CandidateTree, steps: int = 20
) -> dict[str, float]:
    """Return a step's milliseconds in matrix products, attention, other operators and Python."""
    timings = decoding(model, prompt, tree, steps + 3)
    for _ in range(3):
        next(timings)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        seconds = sum(timing.seconds for timing in timings)
    events = {event.key: event for event in recorded.key_averages()}
    total = sum(event.self_cpu_time_total for event in events.values())

    def microseconds(name: str) -> float:
        return events[name].cpu_time_total if name in events else 0.0

    products = sum(map(microseconds, PRODUCTS)) or microseconds(DENSE)
    attention = microseconds(ATTENTION)
    scale = 1e-3 / steps
    return {
        "products": products * scale,
        "attention": attention * scale,
        "other operators": (total - products - attention) * scale,
        "python and profiler": 1000 * seconds / steps - total * scale,
    }


def tree_of(model: MedusaModel, nodes: int) -> CandidateTree:
    """Return the default tree of so many nodes; that of plain decoding for one."""
    return CandidateTree.default(model.heads.config.num_heads, nodes) if nodes > 1 else PLAIN


def prompt_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of 60 requests behind one another, some thousand tokens."""
    prompts = (tokenizer(task.prompt)["input_ids"] for task in demo.calibration_tasks(60))
    return list(itertools.chain.from_iterable(prompts))


def profile_model(
    name: str, options: argparse.Namespace
) -> tuple[dict[Setting, dict[str, float]], dict[Setting, dict[str, float]]]:
    """Return milliseconds by phase and by operator of one model, for each setting.

    Operators are left out for compiled models, in which torch's profiler does not see them.
    """
    loaded = {
        variant: demo.load(inflate=WIDTHS[name], **VARIANTS[variant])
        for variant in options.variants
    }
    text = prompt_tokens(loaded[options.variants[0]][1])
    settings = [
        Setting(*values)
        for values in itertools.product(options.variants, options.contexts, options.nodes)
    ]
    arguments = {
        each: (
            loaded[each.variant][0],
            text[: each.context],
            tree_of(loaded[each.variant][0], each.nodes),
        )
        for each in settings
    }
    calls = {
        each: partial(phase_milliseconds, *arguments[each], options.steps) for each in settings
    }
    phases = {
        each: medians({name: [run[name] for run in runs] for name in runs[0]})
        for each, runs in interleaved(calls, options.rounds).items()
    }
    operators = {
        each: operator_milliseconds(*arguments[each])
        for each in settings
        if not loaded[each.variant][0].compiled
    }
    return phases, operators


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(
        __doc__, rounds=3, rounds_help="runs of --steps steps for each setting"
    )
    parser.add_argument(
        "--models", nargs="+", choices=WIDTHS, default=list(WIDTHS), help="models (default: all)"
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        help="how linear layers run (default: all)",
    )
    parser.add_argument(
        "--nodes", nargs="+", type=int, default=[1, 8, 16], help="tree sizes (default: 1 8 16)"
    )
    parser.add_argument(
        "--contexts",
        nargs="+",
        type=int,
        default=[100, 1000],
        help="context lengths in tokens (default: 100 1000)",
    )
    parser.add_argument("--steps", type=int, default=40, help="steps of a run (default: 40)")
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    report = new_report(phases={}, inside={})
    labels = ("model", "weights", "context", "nodes")
    by_phase = Table(*labels, *PHASES.values(), "bookkeeping", "step ms", "besides the model")
    by_operator = Table(*labels, "products", "attention", "other operators", "python and profiler")
    for name in options.models:
        phases, operators = profile_model(name, options)
        for setting, ms in phases.items():
            report["phases"][setting.key(name)] = ms
            besides = 1 - (ms["heads"] + ms["base model"]) / ms["step"]
            values = (f"{value:.2f}" for value in ms.values())
            by_phase.add_row(*setting.cells(name), *values, f"{besides:.1%}")
        for setting, ms in operators.items():
            report["inside"][setting.key(name)] = ms
            by_operator.add_row(*setting.cells(name), *(f"{value:.2f}" for value in ms.values()))
    publish(options, report, "profile", by_phase, by_operator, width=WIDTH)


if __name__ == "__main__":
    main()
