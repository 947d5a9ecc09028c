"""The dtype in which a CPU multiplies fastest: measured once on each machine.

Processors without instructions for 16-bit numbers widen them first. Such products of several rows,
which verify a tree, take up to four times as long as in float32.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..files import Schema, cache_folder, read_json, write_json
from ..hardware.provenance import device_name
from ..hardware.timing import timed
from .products import PackedWeight, packable

SIZE = 1536
"""Rows and columns of the weight that is timed."""
ROWS = (1, 8, 16)
"""Row counts that are timed: plain decoding, and trees that pay on a CPU."""
ROUNDS = 7


class Ratios(Schema):
    """File of measurements.

    Attributes:
        ratios: time of products in a dtype, divided by that in float32, by machine and dtype.
    """

    ratios: dict[str, float]


def fast_dtype(stored: torch.dtype) -> torch.dtype:
    """Return the dtype in which this CPU runs a checkpoint fastest: its own one, or float32.

    The first call on a machine measures it, which takes less than a second.

    Args:
        stored: dtype of the checkpoint's weights.
    """
    if stored not in (torch.bfloat16, torch.float16):
        return stored
    return stored if _ratio(stored) <= 1 else torch.float32


def _ratio(dtype: torch.dtype) -> float:
    """Return the time of products in a dtype, in float32 products; as this machine had it once."""
    processor = device_name(torch.device("cpu"))
    key = f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}, {dtype}"
    file = cache_folder() / "products.json"
    try:
        known = dict(read_json(file, Ratios).ratios)
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = measured_ratio(dtype)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"ratios": known})
        except OSError:
            pass  # a machine without a place for it measures again
    return known[key]


def measured_ratio(dtype: torch.dtype) -> float:
    """Return the time of products in a dtype, in float32 products, over all of `ROWS`.

    The two take turns, so that a machine that slows down for a while slows both.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SIZE, SIZE, generator=generator)
    products = [_product(weight.to(dtype)), _product(weight)]
    ratios = []
    for _ in range(ROUNDS):
        narrow = wide = 0.0
        for rows in ROWS:
            states = torch.randn(rows, SIZE, generator=generator)
            narrow += timed(partial(products[0], states.to(dtype))).seconds
            wide += timed(partial(products[1], states)).seconds
        ratios.append(narrow / wide)
    return statistics.median(ratios)


def _product(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the product with a weight as decoding computes it: packed, where that is possible."""
    return PackedWeight(weight) if packable(weight) else partial(F.linear, weight=weight)
