"""`python -m benchmarks.precision`: speed of a step with weights of fewer bits, on a CPU.

A Llama of 100 million random parameters in a real model's proportions runs in float32, in float32
with weights packed in 16 bits, in bfloat16, and with linear layers quantised to 8 bits (torch's
dynamic quantisation of all layers but the lm_head). Variants take turns.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import nn

from medusa.calibration.latency import Latency, measure_latency
from medusa.core.checks import Prepack
from medusa.core.tree import CandidateTree
from medusa.hardware.timing import interleaved
from medusa.loading import MedusaModel

from .harness import argument_parser, medians, new_report, parse_arguments, publish
from .models import llama_100m, random_llama, round_weights

SIZES = (1, 4, 8, 16, 32)


def variants() -> dict[str, MedusaModel]:
    """Return the same model in every precision, with heads that share its lm_head."""
    base = random_llama(llama_100m())
    round_weights(base, torch.bfloat16)
    half = copy.deepcopy(base).to(torch.bfloat16)
    eighth = copy.deepcopy(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of this quantisation
        eighth.model = torch.ao.quantization.quantize_dynamic(
            eighth.model, {nn.Linear}, dtype=torch.qint8
        )
    bases: dict[str, tuple[Any, Prepack]] = {
        "float32, dense": (base, False),
        "float32, packed": (base, True),
        "float32, packed in 16 bits": (base, "half"),
        "bfloat16, dense": (half, False),
        "bfloat16, packed": (half, True),
        "8 bits, lm_head packed": (eighth, True),
    }
    return {
        name: MedusaModel.from_base(model, num_heads=5, own_lm_head=False, prepack=prepack)
        for name, (model, prepack) in bases.items()
    }


def step_milliseconds(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of a step, by variant and number of nodes."""
    text = torch.randint(llama_100m().vocab_size, (options.context,)).tolist()
    trees = [CandidateTree.default(5, nodes) for nodes in SIZES]
    calls: dict[str, Callable[[], Latency]] = {
        name: partial(
            measure_latency,
            model,
            text,
            trees,
            {"do_sample": False},
            contexts=(options.context,),
            rounds=3,
        )
        for name, model in variants().items()
    }
    milliseconds: dict[str, dict[int, list[float]]] = {name: {} for name in calls}
    for name, latencies in interleaved(calls, options.rounds).items():
        timed_rounds = (each for latency in latencies for each in latency.rounds[options.context])
        for timed_round in timed_rounds:
            for nodes, seconds in timed_round.items():
                milliseconds[name].setdefault(nodes, []).append(1000 * seconds)
    return {
        name: {str(nodes): ms for nodes, ms in sorted(medians(by_nodes).items())}
        for name, by_nodes in milliseconds.items()
    }


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__, rounds=6, rounds_help="turns of each variant")
    parser.add_argument("--context", type=int, default=256, help="tokens before the timed steps")
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    milliseconds = step_milliseconds(options)
    table = Table("ms a step", *(f"{nodes} nodes" for nodes in SIZES), "overhead of 8")
    for name, ms in milliseconds.items():
        table.add_row(name, *(f"{value:.1f}" for value in ms.values()), f"{ms['8'] / ms['1']:.2f}")
    publish(options, new_report(context=options.context, ms=milliseconds), "precision", table)


if __name__ == "__main__":
    main()
