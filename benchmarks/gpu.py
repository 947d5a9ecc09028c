"""`python -m benchmarks.gpu`: what a step costs on a GPU, against what moving its bytes costs.

Llama-7B- and 13B-shaped models with random weights, bfloat16, batch 1: the bandwidth measured here
and the floor it sets, plain steps, steps of 16 to 128 nodes with shared and with own lm_heads,
transformers' `generate` eager and with static cache and compilation; and the embedded model
inflated to the size of a 7B model, which accepts what real heads make it accept.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from medusa import demo, files
from medusa.calibration.latency import measure_latency
from medusa.core.engine import PLAIN
from medusa.core.tree import CandidateTree
from medusa.evaluation.measure import Totals, compare
from medusa.evaluation.prompts import held_out
from medusa.evaluation.report import results_folder, slug
from medusa.hardware.provenance import provenance
from medusa.loading import MedusaModel

SHAPES: dict[str, dict[str, int]] = {
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "13B": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}
NODES = (16, 32, 48, 64, 96, 128)
INFLATED_WIDTH = 1_500_000
"""MLP columns that give the embedded model's six layers as many parameters as a 7B model."""


def bandwidth(device: torch.device, size: int = 2**31) -> float:
    """Bytes a second that a large copy reads and writes; the best of ten."""
    source = torch.empty(size if device.type == "cuda" else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        _wait(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = max(best, 2 * source.numel() / (time.perf_counter() - started))
    return best


def random_llama(shape: str, device: torch.device) -> LlamaForCausalLM:
    """A Llama of the named shape with random weights."""
    config = LlamaConfig(vocab_size=32_000, max_position_embeddings=4096, **SHAPES[shape])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def bytes_moved(base: LlamaForCausalLM, context: int) -> int:
    """What one plain step has to read: every weight but the input embedding's, and the context's
    keys and values.
    """
    weights = sum(each.numel() * each.element_size() for each in base.parameters())
    embedding = base.get_input_embeddings().weight
    config = base.config
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return (
        weights
        - embedding.numel() * embedding.element_size()
        + context * per_token * embedding.element_size()
    )


def steps(base: LlamaForCausalLM, own_lm_head: bool, context: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a plain step and of steps of many nodes."""
    model = MedusaModel.from_base(base, num_heads=5, own_lm_head=own_lm_head)
    text = torch.randint(
        base.config.vocab_size, (context,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    trees = [PLAIN, *(CandidateTree.default(5, nodes) for nodes in NODES)]
    latency = measure_latency(
        model, text, trees, {"do_sample": False}, contexts=(context,), rounds=rounds
    )
    curve = latency.curve()
    return {
        "captured": model.captures_steps,
        "ms": {str(nodes): ms for nodes, ms in curve.items()},
        "overhead": {str(nodes): ms / curve[1] for nodes, ms in curve.items()},
    }


def generate(base: LlamaForCausalLM, context: int, tokens: int, **options: Any) -> float:
    """Milliseconds a token of transformers' `generate` after the prefill: median of three, after
    one to warm up.
    """
    ids = torch.randint(
        base.config.vocab_size, (1, context), generator=torch.Generator().manual_seed(0)
    )
    ids = ids.to(base.device)
    took = []
    for _ in range(4):
        seconds = []
        for count in (1, tokens + 1):
            _wait(base.device)
            started = time.perf_counter()
            base.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                **options,
            )
            _wait(base.device)
            seconds.append(time.perf_counter() - started)
        took.append((seconds[1] - seconds[0]) / tokens)
    return 1000 * statistics.median(took[1:])


def inflated(device: torch.device, per_category: int, width: int) -> dict[str, Any]:
    """The embedded model at the cost of a larger one: Medusa against plain decoding and `generate`,
    greedy.
    """
    model, tokenizer = demo.load(inflate=width, dtype=torch.bfloat16, all_heads=True)
    model.to(device)
    prompts = [_moved(prompt, device) for prompt in held_out(tokenizer, per_category)]
    results = {}
    for nodes in (16, 32, 64):
        model.tree = CandidateTree.from_accuracies(model.calibration.accuracies, nodes)
        methods = ("plain", "medusa", "generate") if nodes == 64 else ("plain", "medusa")
        runs = compare(
            model, prompts, {"max_new_tokens": 256, "do_sample": False}, methods=methods, repeats=1
        )
        results[str(nodes)] = Totals(list(runs)).summary(greedy=nodes == 64)
    return {"parameters": model.base.num_parameters(), "by_nodes": results}


def _moved(prompt: Any, device: torch.device) -> Any:
    return replace(prompt, ids=prompt.ids.to(device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["7B", "13B"])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of transformers' generate")
    parser.add_argument(
        "--per-category",
        type=int,
        default=2,
        help="prompts for the inflated model; 0 leaves it out",
    )
    parser.add_argument(
        "--width", type=int, default=INFLATED_WIDTH, help="MLP columns of the inflated model"
    )
    parser.add_argument("--output", type=results_folder, default="benchmarks/results")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = provenance()
    read = bandwidth(device)
    report: dict[str, Any] = {
        "provenance": made,
        "bandwidth": read,
        "context": options.context,
        "shapes": {},
    }
    console = Console(width=140)
    table = Table(
        "shape",
        "lm_heads",
        "floor ms",
        "plain ms",
        *(f"{nodes} nodes" for nodes in NODES),
        "generate",
        "static",
    )
    for shape in options.shapes:
        base = random_llama(shape, device)
        floor = 1000 * bytes_moved(base, options.context) / read
        result: dict[str, Any] = {"bytes": bytes_moved(base, options.context), "floor_ms": floor}
        for own in (False, True):
            name = "own" if own else "shared"
            result[name] = steps(base, own, options.context, options.rounds)
            _free()
        result["generate_ms"] = generate(base, options.context, options.tokens)
        result["generate_static_ms"] = generate(
            base, options.context, options.tokens, cache_implementation="static"
        )
        report["shapes"][shape] = result
        for name in ("shared", "own"):
            ms, overhead = result[name]["ms"], result[name]["overhead"]
            table.add_row(
                shape,
                name,
                f"{floor:.2f}",
                f"{ms['1']:.2f}",
                *(f"{overhead[str(nodes)]:.3f}x" for nodes in NODES),
                f"{result['generate_ms']:.2f}",
                f"{result['generate_static_ms']:.2f}",
            )
        del base
        _free()
    console.print(f"{made['device']}: {read / 1e9:.0f} GB/s copied", table)
    if options.per_category:
        report["inflated"] = inflated(device, options.per_category, options.width)
        console.print(report["inflated"])
    file = options.output / f"gpu-{slug(made['device'])}.json"
    files.write_json(file, report, indent=1)
    console.print(f"written to {file}")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
