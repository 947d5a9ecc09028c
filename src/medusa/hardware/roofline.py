"""Rates of a model's matrix products on this machine, against operational intensity (section G.1).

Three families of products are measured: the projections of queries, keys and values, the two
products of attention, and those of the MLP. Each is measured in a prefill, in plain decoding, and
in Medusa decoding, which verifies several candidates in each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .devices import Device, median_seconds
from .operators import CANDIDATES, LENGTHS, ModelShape, Work

FAMILIES = {"qkv": "q", "qk/pv": "qk", "up/gate/down": "up"}
"""Families of products, and the product that is measured of each; the others are alike."""
ROUNDS = 5
"""Times that a product is measured; the median counts."""
LARGEST_SECONDS = 0.5
"""Products that would take longer than this on an ideal device are left out."""
LARGEST_SHARE = 0.25
"""Products that would take more than this share of the memory are left out."""


@dataclass(frozen=True)
class Setting:
    """A product to measure.

    Attributes:
        family: one of `FAMILIES`.
        phase: "prefill", "decoding" or "medusa".
        batch: rows.
        queries: new tokens of a row.
        context: tokens that a row attends to.
    """

    family: str
    phase: str
    batch: int
    queries: int
    context: int

    def work(self, shape: ModelShape) -> Work:
        """Return what the product computes and moves."""
        return shape.block(self.batch, self.queries, self.context)[FAMILIES[self.family]]


@dataclass(frozen=True)
class Point:
    """A measured product.

    Attributes:
        intensity: operations for each byte that is moved.
        rate: operations a second.
        seconds: time of the product.
    """

    setting: Setting
    intensity: float
    rate: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the point as it is stored."""
        named = {"intensity": self.intensity, "rate": self.rate, "seconds": self.seconds}
        return asdict(self.setting) | named


def settings(
    batches: Sequence[int], lengths: Sequence[int] = LENGTHS, candidates: Sequence[int] = CANDIDATES
) -> Iterator[Setting]:
    """Yield the paper's grid of products.

    Linear layers see the new tokens only, so that in decoding they are measured at one length.
    """
    for family in FAMILIES:
        for batch in batches:
            for length in lengths:
                yield Setting(family, "prefill", batch, length, length)
            for length in lengths if family == "qk/pv" else lengths[:1]:
                for count in candidates:
                    phase = "decoding" if count == 1 else "medusa"
                    yield Setting(family, phase, batch, count, length)


def fits(setting: Setting, shape: ModelShape, device: Device) -> bool:
    """Return True if a product can be measured in reasonable time and memory."""
    work = setting.work(shape)
    small = work.bytes(device.size) < LARGEST_SHARE * device.memory
    return small and device.seconds(work) < LARGEST_SECONDS


def measure(setting: Setting, shape: ModelShape, place: torch.device, dtype: torch.dtype) -> Point:
    """Measure a product with random numbers."""
    seconds = median_seconds(product(setting, shape, place, dtype), place, ROUNDS)
    work = setting.work(shape)
    return Point(setting, work.intensity(dtype.itemsize), work.flops / seconds, seconds)


def product(
    setting: Setting, shape: ModelShape, place: torch.device, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """Return the product as a function; attention is Q K^T of all heads."""

    def numbers(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=place).to(dtype)

    if setting.family == "qk/pv":
        groups = shape.heads // shape.kv_heads
        rows = setting.batch * shape.kv_heads
        queries = numbers(rows, groups * setting.queries, shape.head_size)
        keys = numbers(rows, setting.context, shape.head_size)
        return partial(torch.bmm, queries, keys.mT)
    outputs = shape.query_size if setting.family == "qkv" else shape.intermediate_size
    states = numbers(setting.batch * setting.queries, shape.hidden_size)
    return partial(F.linear, states, numbers(outputs, shape.hidden_size))
