"""`python -m benchmarks.precision`: whether weights of fewer bits pay on this CPU.

A Llama of 100 million random parameters in a real model's proportions: in float32, in float32 with
weights packed in 16 bits, in bfloat16, and with linear layers quantised to 8 bits (torch's dynamic
quantisation, all but the lm_head). Steps of several sizes, variants by turns.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import warnings
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from transformers import LlamaForCausalLM

from medusa.calibration.latency import measure_latency
from medusa.core.checks import Prepack
from medusa.core.tree import CandidateTree
from medusa.evaluation.report import results_folder, write_json
from medusa.hardware.provenance import provenance
from medusa.loading import MedusaModel

from .replay import PROPORTIONS

SIZES = (1, 4, 8, 16, 32)


def variants() -> dict[str, MedusaModel]:
    """The same model in every precision, with heads that share its lm_head."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(PROPORTIONS).eval()
    base.load_state_dict(
        {name: weight.bfloat16().float() for name, weight in base.state_dict().items()}
    )
    half = copy.deepcopy(base).to(torch.bfloat16)
    eighth = copy.deepcopy(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eighth.model = torch.ao.quantization.quantize_dynamic(
            eighth.model, {nn.Linear}, dtype=torch.qint8
        )
    made: dict[str, tuple[Any, Prepack]] = {
        "float32, dense": (base, False),
        "float32, packed": (base, True),
        "float32, packed in 16 bits": (base, "half"),
        "bfloat16, dense": (half, False),
        "bfloat16, packed": (half, True),
        "8 bits, lm_head packed": (eighth, True),
    }
    return {name: _with_heads(model, prepack) for name, (model, prepack) in made.items()}


def _with_heads(base: Any, prepack: Prepack) -> MedusaModel:
    return MedusaModel.from_base(base, num_heads=5, own_lm_head=False, prepack=prepack)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=results_folder, default="benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console, errors = Console(width=120), Console(stderr=True)
    text = torch.randint(PROPORTIONS.vocab_size, (options.context,)).tolist()
    trees = [CandidateTree.default(5, nodes) for nodes in SIZES]
    taken: dict[str, dict[int, list[float]]] = {}
    models = variants()
    for _ in track(range(options.rounds), "rounds", console=errors):
        for name, model in models.items():
            latency = measure_latency(
                model, text, trees, {"do_sample": False}, contexts=(options.context,), rounds=3
            )
            for each in latency.rounds[options.context]:
                for nodes, seconds in each.items():
                    taken.setdefault(name, {}).setdefault(nodes, []).append(1000 * seconds)
    medians = {
        name: {str(n): statistics.median(ms[n]) for n in SIZES} for name, ms in taken.items()
    }
    shown = Table("ms a step", *(f"{nodes} nodes" for nodes in SIZES), "overhead of 8")
    for name, ms in medians.items():
        shown.add_row(name, *(f"{value:.1f}" for value in ms.values()), f"{ms['8'] / ms['1']:.2f}")
    console.print(shown)
    report = {"provenance": provenance(), "context": options.context, "ms": medians}
    console.print(f"written to {write_json(options.output, report, 'precision')}")


if __name__ == "__main__":
    main()
