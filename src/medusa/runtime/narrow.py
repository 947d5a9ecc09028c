"""Packed weights in fewer bits than the model's own, which a CPU reads faster.

A step of a single request takes about as long as reading all weights once, so that weights of half
the bytes take half of the time. `HalfWeight` changes no value; `Int4Weight` is for weights that
were stored in 4 bits before, which changes them very little.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from .products import PackedWeight, Product

Narrow = Literal["half", "int4"] | None
"""Kinds of weights packed in fewer bits: none, those of `HalfWeight`, or also of `Int4Weight`."""
GROUP = 32
"""Consecutive inputs of an output feature that share a step and a least value in 4 bits."""
STEPS = 15
"""Steps between the least and the greatest of 4-bit values."""
FEATURES = 16
"""The 4-bit product takes multiples of so many output features."""
LARGEST_ERROR = 5e-3
"""Norm of a weight's rounding to 4 bits, as a share of the weight's own, up to which it is packed.

The error of weights that were stored in 4 bits is about 0.002, and of others about 0.08.
"""


class HalfWeight(PackedWeight):
    """A copy of a float32 weight, packed in float16; FBGEMM sums the products in float32.

    It needs half as many bytes to be read. Only weights that float16 represents are packed so,
    usually those of checkpoints that were saved in 16 bits. Values near zero may be rounded by at
    most 2^-25; their exact values are stored separately, for `dense`.
    """

    @staticmethod
    def holds(weight: Tensor) -> bool:
        """Return True if float16 represents a weight, up to the rounding of values near zero."""
        if weight.dtype != torch.float32 or not sixteen_bits():
            return False
        return bool((weight.detach().half().float() - weight.detach()).abs().max() <= 2**-25)

    def _pack(self, weight: Tensor) -> None:
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, None)
        rounded = weight.half().float()
        self.rounded_indices = (rounded != weight).flatten().nonzero()[:, 0]
        self.exact_values = weight.flatten()[self.rounded_indices]

    def _multiply(self, states: Tensor) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16(states, self.packed)
        return product if self.bias is None else product + self.bias

    def dense(self) -> Tensor:
        """Return the dense weight, bit for bit as it was packed."""
        weight, _ = torch.ops.quantized.linear_unpack_fp16(self.packed)
        weight.view(-1)[self.rounded_indices] = self.exact_values
        return weight


class Int4Weight(PackedWeight):
    """A copy of a weight in 4 bits, as llama.cpp's Q4_0 and Q4_1 have it; states are in bfloat16.

    Each group of 32 inputs has a least value and a step. Only weights that hardly change are packed
    so: those that were stored in 4 bits before. Products are rounded to bfloat16.
    """

    @staticmethod
    def holds(weight: Tensor) -> bool:
        """Return True if 4 bits hold a weight up to `LARGEST_ERROR`."""
        features, inputs = weight.shape
        if features % FEATURES or inputs % GROUP or not four_bits():
            return False
        weight = weight.detach().float()
        error = dequantised(*quantised(weight)) - weight
        return bool(error.norm() <= LARGEST_ERROR * weight.norm())

    def _pack(self, weight: Tensor) -> None:
        numbers, steps, least = quantised(weight.float())
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers.flatten(1), 1)
        points = torch.stack([steps, least + (STEPS + 1) // 2 * steps], -1)
        self.points = points.transpose(0, 1).contiguous().bfloat16()

    def _multiply(self, states: Tensor) -> Tensor:
        return self.as_argument(self.arguments)(states)

    @property
    def arguments(self) -> list[Tensor]:
        """Return the packed numbers, the points of the groups, and the bias if there is one."""
        return [self.packed, self.points, *([] if self.bias is None else [self.bias])]

    def as_argument(self, tensors: Sequence[Tensor]) -> Product:
        """Return the product in a program that takes `arguments` of any such weight as tensors."""
        packed, points, *bias = tensors

        def multiply(states: Tensor) -> Tensor:
            rows = states.reshape(-1, states.shape[-1]).bfloat16()
            product = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, GROUP, points)
            product = product.to(self.dtype).view(*states.shape[:-1], self.features)
            return product + bias[0] if bias else product

        return multiply

    def dense(self) -> Tensor:
        """Return the dense weight as it multiplies: rounded to 4 bits, and to bfloat16."""
        inputs = GROUP * len(self.points)
        unit = torch.eye(inputs, dtype=torch.bfloat16)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(unit, self.packed, GROUP, self.points)
        weight: Tensor = product.T.to(self.dtype).contiguous()
        return weight


def quantised(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight [out, in] in 4 bits.

    Returns:
        Numbers from 0 to 15 [out, in / 32, 32] in int32, and the step and the least value of each
        group [out, in / 32].
    """
    groups = weight.unflatten(1, (-1, GROUP))
    least, most = groups.amin(-1), groups.amax(-1)
    steps = (most - least) / STEPS
    numbers = (groups - least[..., None]) / steps.clamp_min(torch.finfo().tiny)[..., None]
    return numbers.round().clamp(0, STEPS).to(torch.int32), steps, least


def dequantised(numbers: Tensor, steps: Tensor, least: Tensor) -> Tensor:
    """Return the weight [out, in] that `quantised` made numbers of."""
    return (numbers * steps[..., None] + least[..., None]).flatten(1)


KINDS: dict[Narrow, tuple[type[HalfWeight | Int4Weight], ...]] = {
    None: (),
    "half": (HalfWeight,),
    "int4": (Int4Weight, HalfWeight),
}
"""The kinds of packed weights that are tried, in this order, before `PackedWeight`."""


def packed(weight: Tensor, bias: Tensor | None, narrow: Narrow) -> PackedWeight:
    """Pack a weight in the fewest bits that hold it and that `narrow` allows."""
    kind = next((kind for kind in KINDS[narrow] if kind.holds(weight)), PackedWeight)
    return kind(weight, bias)


@cache
def sixteen_bits() -> bool:
    """Return True if torch can multiply by float16 weights with float32 sums on this CPU."""
    try:
        weight = torch.ops.quantized.linear_prepack_fp16(torch.zeros(16, 16), None)
        torch.ops.quantized.linear_dynamic_fp16(torch.zeros(1, 16), weight)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


@cache
def four_bits() -> bool:
    """Return True if torch can multiply by weights of 4 bits on this CPU."""
    try:
        Int4Weight(torch.zeros(FEATURES, GROUP)).dense()
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True
