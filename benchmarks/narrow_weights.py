"""`python -m benchmarks.narrow_weights`: SmolLM2's products with weights in fewer bits, on a CPU.

All linear layers of a forward are multiplied by states of 1, 4, 8 and 16 rows, with weights as this
library packs them and in 8 and 4 bits as torch offers them. The perplexity of texts tells what the
rounding costs. Methods:

- float32, bfloat16, float16: packed, as `dtype` and `prepack` choose them.
- int8, states alike: FBGEMM's dynamic products, in which all rows of states share a scale. What a
  node computes then depends on the other nodes of its tree.
- int8, states by row: the same with a scale for each row, as an exact verification needs it.
- int8 weights, int4 weights: torch's weight-only products, with states in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from medusa.demo import smollm2
from medusa.hardware.timing import interleaved, timed
from medusa.runtime.narrow import HalfWeight, Int4Weight
from medusa.runtime.products import PackedWeight

from .harness import argument_parser, medians, new_report, parse_arguments, publish

ROWS = (1, 4, 8, 16)
LARGEST_LAYER = 1 << 15
"""Output features above which a layer is the output layer."""
CONTEXT = 384
"""Tokens of a text."""
Product = Callable[[Tensor], Tensor]


def scales(weight: Tensor) -> Tensor:
    """Return the step of each output feature [out] in int8."""
    return weight.abs().amax(1).clamp_min(1e-12) / 127


def int8(weight: Tensor) -> Product:
    """Return FBGEMM's product with an int8 weight; all rows of states share a scale."""
    zeros = torch.zeros(len(weight), dtype=torch.long)
    rounded = torch.quantize_per_channel(weight, scales(weight).double(), zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(rounded, None)
    return lambda states: torch.ops.quantized.linear_dynamic(states, packed)


def int8_by_row(weight: Tensor) -> Product:
    """Return the same product with a scale for each row of states.

    Rows are divided by their largest absolute value, and a row of 1 and -1 is added, so that the
    scale that all rows share is the same whatever they hold.
    """
    product, extremes = int8(weight), torch.zeros(1, weight.shape[1])
    extremes[0, 0], extremes[0, -1] = 1, -1

    def multiply(states: Tensor) -> Tensor:
        rows = states.reshape(-1, states.shape[-1])
        largest = rows.abs().amax(-1, keepdim=True).clamp_min(1e-12)
        found = product(torch.cat([rows / largest, extremes]))[:-1] * largest
        return found.reshape(*states.shape[:-1], -1)

    return multiply


def int8_weights(weight: Tensor) -> Product:
    """Return torch's product of bfloat16 states with an int8 weight."""
    steps = scales(weight)
    rounded = (weight / steps[:, None]).round().clamp(-127, 127).to(torch.int8)
    return lambda states: _flat(
        lambda rows: torch._weight_int8pack_mm(rows.bfloat16(), rounded, steps.bfloat16()), states
    )


def int4_layers(weight: Tensor) -> Product:
    """Return the product in 4 bits, but that of the output layer in float16."""
    return HalfWeight(weight) if len(weight) > LARGEST_LAYER else Int4Weight(weight)


def bfloat16(weight: Tensor) -> Product:
    """Return the packed product in bfloat16."""
    packed = PackedWeight(weight.bfloat16())
    return lambda states: packed(states).float()


def _flat(multiply: Product, states: Tensor) -> Tensor:
    rows = multiply(states.reshape(-1, states.shape[-1])).float()
    return rows.reshape(*states.shape[:-1], -1)


METHODS: dict[str, Callable[[Tensor], Product]] = {
    "float32": PackedWeight,
    "bfloat16": bfloat16,
    "float16": HalfWeight,
    "int8, states alike": int8,
    "int8, states by row": int8_by_row,
    "int8 weights": int8_weights,
    "int4 weights": Int4Weight,
    "int4 weights, output layer in float16": int4_layers,
}


class Replaced(nn.Module):
    """A linear layer that multiplies in another way."""

    def __init__(self, product: Product):
        super().__init__()
        self.product = product

    def forward(self, states: Tensor) -> Tensor:
        return self.product(states)


def load_model() -> Any:
    """Return the model in float32."""
    return AutoModelForCausalLM.from_pretrained(smollm2.fetch(), dtype=torch.float32).eval()


@torch.inference_mode()
def perplexity(model: nn.Module, texts: Sequence[Tensor]) -> float:
    """Return the perplexity of texts, each [1, P] token ids."""
    losses = [(model(ids, labels=ids).loss.item(), ids.shape[1] - 1) for ids in texts]
    return math.exp(sum(loss * count for loss, count in losses) / sum(n for _, n in losses))


def with_products(make: Callable[[Tensor], Product]) -> tuple[nn.Module, list[tuple[int, Product]]]:
    """Return the model with other products, and each product with its number of inputs."""
    model, products = load_model(), []
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                product = make(layer.weight.data)
                setattr(parent, name, Replaced(product))
                products.append((layer.in_features, product))
    return model, products


@torch.inference_mode()
def multiply_all(products: Sequence[tuple[int, Product]], states: dict[int, Tensor]) -> None:
    """Multiply states by all weights of the model."""
    for width, product in products:
        product(states[width])


def read_texts(file: Path, count: int) -> list[Tensor]:
    """Return the token ids of the texts in a file of JSON lines, whose values are joined."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2.fetch())
    lines = file.read_text(encoding="utf-8").splitlines()[:count]
    texts = ["\n".join(map(str, json.loads(line).values())) for line in lines]
    return [torch.tensor([tokenizer(text)["input_ids"][:CONTEXT]]) for text in texts]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each method."""
    texts = read_texts(options.texts, options.count)
    calls, perplexities = {}, {}
    for name, make in METHODS.items():
        model, products = with_products(make)
        perplexities[name] = perplexity(model, texts)
        for rows in ROWS:
            states = {width: torch.randn(rows, width) for width in {each for each, _ in products}}
            run = partial(multiply_all, products, states)
            run()  # kernels are made at the first call
            calls[name, rows] = partial(lambda each: 1000 * timed(each).seconds, run)
    times = interleaved(calls, options.rounds)
    return [
        {
            "method": name,
            "ms": medians({str(rows): times[name, rows] for rows in ROWS}),
            "perplexity": perplexities[name],
        }
        for name in METHODS
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argument_parser(__doc__, rounds=9, rounds_help="turns of each method")
    parser.add_argument("--texts", type=Path, required=True, help="JSON lines with texts")
    parser.add_argument("--count", type=int, default=24, help="texts read (default: 24)")
    options = parse_arguments(parser)
    rows = measure(options)
    table = Table("ms of all products, by rows", *map(str, ROWS), "perplexity")
    for row in rows:
        table.add_row(
            row["method"],
            *(f"{value:.1f}" for value in row["ms"].values()),
            f"{row['perplexity']:.3f}",
        )
    report = new_report(model=smollm2.HUB_ID, texts=options.texts.name, rows=rows)
    publish(options, report, "smollm2-narrow-weights", table)


if __name__ == "__main__":
    main()
