"""`python -m benchmarks.gpu`: the time of a step on a GPU, against the time to move its bytes.

Llama-7B- and 13B-shaped models with random weights, bfloat16, batch size 1. Measured are the
memory bandwidth and the floor it sets, plain steps, steps of 16 to 128 nodes with shared and with
own lm_heads, transformers' `generate` eager and with static cache and compilation, and the embedded
model inflated to the size of a 7B model, which accepts what real heads make it accept.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from medusa import demo
from medusa.calibration.latency import measure_latency
from medusa.core.engine import PLAIN
from medusa.core.tree import CandidateTree
from medusa.evaluation import METHODS, Bench, BenchSettings, run_bench
from medusa.evaluation.bench_report import report as report_of
from medusa.evaluation.prompts import task_questions
from medusa.hardware.timing import timed
from medusa.loading import MedusaModel

from .harness import argument_parser, new_report, parse_arguments, publish_for_device
from .models import random_llama

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
INFLATED_WIDTH_7B = 1_500_000
"""MLP columns that give the embedded model's six layers as many parameters as a 7B model."""
WIDTH = 140


def copy_bandwidth(device: torch.device, size: int = 2**31) -> float:
    """Return the bytes a second that a large copy reads and writes; the best of ten."""
    source = torch.empty(size if device.type == "cuda" else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copies = [timed(partial(target.copy_, source), device) for _ in range(10)]
    return 2 * source.numel() / min(copy.seconds for copy in copies)


def shaped_llama(shape: str, device: torch.device) -> LlamaForCausalLM:
    """Return a Llama of a shape of `SHAPES` with random weights in bfloat16."""
    config = LlamaConfig(vocab_size=32_000, max_position_embeddings=4096, **SHAPES[shape])
    return random_llama(config, torch.bfloat16, device)


def bytes_moved(base: LlamaForCausalLM, context: int) -> int:
    """Return the bytes that one plain step has to read.

    These are all weights but the input embedding, and the keys and values of the context.
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


def step_latency(
    base: LlamaForCausalLM, own_lm_head: bool, context: int, rounds: int
) -> dict[str, Any]:
    """Return milliseconds and overhead of a step, by number of nodes."""
    model = MedusaModel.from_base(base, num_heads=5, own_lm_head=own_lm_head)
    text = _random_ids(base, context)[0].tolist()
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


def generate_milliseconds(
    base: LlamaForCausalLM, context: int, tokens: int, **options: Any
) -> float:
    """Return the milliseconds a token of transformers' `generate` after the prefill.

    The median of three runs, after one to warm up.

    Args:
        context: tokens of the prompt.
        tokens: tokens decoded after the first.
        options: further arguments of `generate`.
    """
    ids = _random_ids(base, context).to(base.device)

    def seconds(count: int) -> float:
        call = partial(
            base.generate,
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            **options,
        )
        return timed(call, base.device).seconds

    def decoding_seconds() -> float:
        prefill = seconds(1)
        return seconds(tokens + 1) - prefill

    return 1000 * statistics.median([decoding_seconds() for _ in range(4)][1:]) / tokens


def _random_ids(base: LlamaForCausalLM, length: int) -> torch.Tensor:
    """Return random token ids [1, length]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(base.config.vocab_size, (1, length), generator=generator)


def compare_inflated(device: torch.device, per_category: int, width: int) -> dict[str, Any]:
    """Compare Medusa with its baselines on the embedded model inflated to a large one, greedily.

    `generate`, which does not depend on the tree, is measured with the largest tree only.
    """
    model, tokenizer = demo.load(inflate=width, dtype=torch.bfloat16, all_heads=True)
    model.to(device)
    results = {}
    for nodes in (16, 32, 64):
        model.tree = CandidateTree.from_accuracies(model.calibration.accuracies, nodes)
        names = ("plain", "medusa", "generate") if nodes == 64 else ("plain", "medusa")
        bench = Bench(model, tokenizer, {name: METHODS[name] for name in names}, BenchSettings())
        results[str(nodes)] = report_of(run_bench(bench, task_questions(per_category)))
    return {"parameters": model.base.num_parameters(), "by_nodes": results}


def measure_shape(
    shape: str, device: torch.device, bandwidth: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the floor, the step times and the time of `generate` for a shape of `SHAPES`."""
    base = shaped_llama(shape, device)
    bytes_read = bytes_moved(base, options.context)
    result: dict[str, Any] = {"bytes": bytes_read, "floor_ms": 1000 * bytes_read / bandwidth}
    for name, own_lm_head in {"shared": False, "own": True}.items():
        result[name] = step_latency(base, own_lm_head, options.context, options.rounds)
        _free_memory()
    result["generate_ms"] = generate_milliseconds(base, options.context, options.tokens)
    result["generate_static_ms"] = generate_milliseconds(
        base, options.context, options.tokens, cache_implementation="static"
    )
    return result


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def shape_rows(shape: str, result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the table rows of a shape: shared lm_head, own lm_heads."""
    for name in ("shared", "own"):
        ms, overhead = result[name]["ms"], result[name]["overhead"]
        yield (
            shape,
            name,
            f"{result['floor_ms']:.2f}",
            f"{ms['1']:.2f}",
            *(f"{overhead[str(nodes)]:.3f}x" for nodes in NODES),
            f"{result['generate_ms']:.2f}",
            f"{result['generate_static_ms']:.2f}",
        )


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__, rounds=15, rounds_help="timed steps of each tree size")
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, default=["7B", "13B"], help="shapes (default: both)"
    )
    parser.add_argument("--context", type=int, default=1024, help="tokens before the timed steps")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of transformers' generate")
    parser.add_argument(
        "--per-category",
        type=int,
        default=2,
        help="prompts of each category for the inflated model; 0 leaves it out",
    )
    parser.add_argument(
        "--width",
        type=int,
        default=INFLATED_WIDTH_7B,
        help="MLP columns of the inflated model (default: those of a 7B model)",
    )
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bandwidth = copy_bandwidth(device)
    report = new_report(bandwidth=bandwidth, context=options.context, shapes={})
    nodes = (f"{nodes} nodes" for nodes in NODES)
    table = Table("shape", "lm_heads", "floor ms", "plain ms", *nodes, "generate", "static")
    for shape in options.shapes:
        report["shapes"][shape] = measure_shape(shape, device, bandwidth, options)
        _free_memory()
        for row in shape_rows(shape, report["shapes"][shape]):
            table.add_row(*row)
    shown: list[Any] = [
        f"{report['provenance']['device']}: {bandwidth / 1e9:.0f} GB/s copied",
        table,
    ]
    if options.per_category:
        report["inflated"] = compare_inflated(device, options.per_category, options.width)
        shown.append(report["inflated"])
    publish_for_device(options, report, "gpu", *shown, width=WIDTH)


if __name__ == "__main__":
    main()
