"""Work of the matrix products of a Llama-shaped model: operations and bytes (paper, table 5).

Symbols as in the table: b rows of a batch, s tokens of context, q new tokens of a row (1 in plain
decoding, the candidates in Medusa decoding, s in a prefill), h hidden size, i intermediate size, n
attention heads, d head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HALF = 2
"""Bytes of a number in half precision."""


@dataclass(frozen=True)
class Work:
    """The operations of a product, and the numbers that it moves.

    Attributes:
        flops: floating-point operations; a multiplication and an addition are two.
        numbers: numbers that are read and written, each once.
        weights: those of them that are weights of the model.
    """

    flops: float
    numbers: float
    weights: float = 0

    def bytes(self, size: float = HALF) -> float:
        """Return the bytes that are moved.

        Args:
            size: bytes of a number.
        """
        return self.numbers * size

    def intensity(self, size: float = HALF) -> float:
        """Return the operational intensity: operations for each byte that is moved."""
        return self.flops / self.bytes(size)

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops, self.numbers + other.numbers, self.weights + other.weights
        )

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.numbers * times, self.weights * times)


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama-shaped model.

    Attributes:
        kv_heads: attention heads that have keys and values of their own.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocab_size: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape:
        """Return the sizes that a model's `config.json` gives.

        Raises:
            ValueError: a size is missing or not a positive number; names it.
        """
        config = {**config, **(config.get("text_config") or {})}
        heads = _size(config, "num_attention_heads")
        hidden = _size(config, "hidden_size")
        return cls(
            hidden_size=hidden,
            intermediate_size=_size(config, "intermediate_size"),
            layers=_size(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=_size(config, "num_key_value_heads", heads),
            head_size=_size(config, "head_dim", hidden // heads),
            vocab_size=_size(config, "vocab_size"),
        )

    @property
    def query_size(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Width of the keys, and of the values, of all heads."""
        return self.kv_heads * self.head_size

    def parameters(self) -> float:
        """Return the number of weights of all layers and of the lm_head."""
        return self.step(1, 1, 1).weights

    def projections(self, rows: int) -> dict[str, Work]:
        """Return X W_Q, X W_K and X W_V for `rows` tokens (b q)."""
        h = self.hidden_size
        return {
            "q": linear(rows, h, self.query_size),
            "k": linear(rows, h, self.kv_size),
            "v": linear(rows, h, self.kv_size),
        }

    def attention(self, batch: int, queries: int, context: int) -> dict[str, Work]:
        """Return Q K^T and P V of all heads; `context` counts the tokens that are attended to."""
        b, q, s, d = batch, queries, context, self.head_size
        work = Work(
            flops=2 * b * self.heads * q * s * d,
            numbers=b * (self.heads * (q * s + q * d) + self.kv_heads * s * d),
        )
        return {"qk": work, "pv": work}

    def mlp(self, rows: int) -> dict[str, Work]:
        """Return X W_u, X W_g and X W_d for `rows` tokens."""
        h, i = self.hidden_size, self.intermediate_size
        return {"up": linear(rows, h, i), "gate": linear(rows, h, i), "down": linear(rows, i, h)}

    def block(self, batch: int, queries: int, context: int) -> dict[str, Work]:
        """Return the products of the paper's simplified block (section G.3)."""
        rows = batch * queries
        return {
            **self.projections(rows),
            **self.attention(batch, queries, context),
            **self.mlp(rows),
        }

    def step(self, batch: int, queries: int, context: int) -> Work:
        """Return the work of a forward: all layers with their output projections, and lm_head."""
        rows = batch * queries
        layer = sum(self.block(batch, queries, context).values(), Work(0, 0))
        layer += linear(rows, self.query_size, self.hidden_size)
        return layer * self.layers + linear(rows, self.hidden_size, self.vocab_size)

    def cache_numbers(self, batch: int, context: int) -> float:
        """Return the number of keys and values of a context."""
        return 2.0 * self.layers * batch * context * self.kv_size


def linear(rows: int, inputs: int, outputs: int) -> Work:
    """Return the product of `rows` vectors [inputs] with a weight [outputs, inputs]."""
    weights = inputs * outputs
    return Work(2 * rows * weights, rows * (inputs + outputs) + weights, weights)


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json: {name} must be a positive whole number, got {value!r}")
    return value


LLAMA = {
    "7b": ModelShape(4096, 11008, 32, 32, 32, 128, 32000),
    "13b": ModelShape(5120, 13824, 40, 40, 40, 128, 32000),
    "33b": ModelShape(6656, 17920, 60, 52, 52, 128, 32000),
}
"""The paper's models: LLaMA, on which Vicuna is based."""

CANDIDATES = (1, 16, 32, 48, 64, 80, 96, 112)
"""Columns of tables 6 to 8."""
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
"""Rows of table 6: tokens of context, at a batch of 16."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""Rows of tables 7 and 8: rows of the batch, in table 7 at a context of 1024."""


def intensity_table(number: int) -> dict[int, list[float]]:
    """Return the operational intensities of table 6, 7 or 8 by row (LLaMA-33B, half precision).

    Raises:
        ValueError: there is no such table.
    """
    shape = LLAMA["33b"]
    if number == 6:
        return {s: [_attention_intensity(shape, 16, q, s) for q in CANDIDATES] for s in LENGTHS}
    if number == 7:
        return {b: [_attention_intensity(shape, b, q, 1024) for q in CANDIDATES] for b in BATCHES}
    if number == 8:
        return {b: [shape.mlp(b * q)["up"].intensity() for q in CANDIDATES] for b in BATCHES}
    raise ValueError(f"the paper gives intensities in tables 6, 7 and 8, not in table {number}")


def _attention_intensity(shape: ModelShape, batch: int, queries: int, context: int) -> float:
    return shape.attention(batch, queries, context)["qk"].intensity()
