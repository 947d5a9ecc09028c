"""Products of states with weights that are packed for the CPU.

torch's linear layer on a CPU reads its weight again for every few rows, so that a product with four
rows takes three to four times as long as one with a single row. oneDNN's packed layout reads the
weight once, and a few more rows cost little.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache
from weakref import WeakValueDictionary

import torch
from torch import Tensor, library, nn
from torch.nn import functional as F

PACKED_ROWS = 16
"""Row count for which oneDNN chooses the packed layout."""
PACKABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS = (*range(1, 17), 24, 32, 48, 64, 96, 128, 192, 256)
"""Row counts of products; other counts are padded to one of these.

oneDNN generates and keeps a kernel for each row count and weight shape, so memory would grow with
every new prompt length.
"""

Product = Callable[[Tensor], Tensor]


class PackedWeight:
    """A packed weight [out, in]; its products equal those of `F.linear` up to rounding.

    Attributes:
        bias: a copy of the layer's bias; the owner may overwrite it.
        dtype: dtype of the weight.
        features: number of output features.
        handle: number that identifies the weight in the operator `medusa::packed_product`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        with torch.inference_mode(False):
            self.bias = None if bias is None else bias.detach().clone()
        self.features, self.dtype = len(weight), weight.dtype
        self.handle = next(_HANDLES)
        _PACKED[self.handle] = self
        self._pack(weight.detach().contiguous())

    def _pack(self, weight: Tensor) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)

    def _multiply(self, states: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self.packed, self.bias, "none", [], ""
        )
        return product

    def __call__(self, states: Tensor) -> Tensor:
        """Map states [..., in] to [..., out].

        The result has the weight's dtype, or autocast's if autocast is enabled.
        """
        states = states.to(self.dtype)
        if not torch.is_autocast_enabled("cpu"):
            return _in_few_sizes(self._multiply, states)
        with torch.autocast("cpu", enabled=False):  # it would cast the states again
            product = _in_few_sizes(self._multiply, states)
        return product.to(torch.get_autocast_dtype("cpu"))

    def dense(self) -> Tensor:
        """Return the dense weight, bit for bit as it was packed."""
        return self.packed.to_dense().clone()

    @property
    def arguments(self) -> list[Tensor]:
        """Return the tensors by which a program is given this weight (see `as_argument`)."""
        return [torch.tensor(self.handle)]

    def as_argument(self, tensors: Sequence[Tensor]) -> Product:
        """Return the product in a program that takes `arguments` of any such weight as tensors.

        Programs take no packed weights, so the product of the handle is an operator of its own.
        """
        (handle,) = tensors
        return lambda states: torch.ops.medusa.packed_product(
            states.to(self.dtype), handle, self.features
        )


class SharedWeight:
    """One layer's part of a weight that is packed for several layers with the same input.

    The first layer that is called computes the product for all of them; the last one frees it.

    Args:
        share: the weight of all layers.
        part: the output features of this layer.
        is_last: True for the last of the layers.
    """

    def __init__(self, share: Share, part: slice, is_last: bool):
        self.share, self.part, self.is_last = share, part, is_last

    @property
    def handle(self) -> int:
        """Return the handle of the weight of all layers."""
        return self.share.weight.handle

    @property
    def bias(self) -> Tensor | None:
        """Return this layer's part of the bias, as a view that may be overwritten."""
        return None if self.share.weight.bias is None else self.share.weight.bias[self.part]

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weight."""
        return self.share.weight.dtype

    def __call__(self, states: Tensor) -> Tensor:
        """Map states [..., in] to [..., out]."""
        return self.share(states, drop=self.is_last)[..., self.part]

    def dense(self) -> Tensor:
        """Return this layer's dense weight, bit for bit as it was packed."""
        return self.share.weight.dense()[self.part].clone()


class Share:
    """The packed weight of several layers with the same input, and its last product.

    The product is stored with its states in one tuple, so that another thread never combines the
    states of one call with the product of another.
    """

    def __init__(self, weight: PackedWeight):
        self.weight = weight
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, states: Tensor, drop: bool) -> Tensor:
        """Return the product for all layers; compute it if the last one had other states.

        Args:
            states: [..., in]; compared by identity.
            drop: do not keep the product for another layer.
        """
        last = self._last
        product = last[1] if last is not None and last[0] is states else self.weight(states)
        self._last = None if drop else (states, product)
        return product


Packed = PackedWeight | SharedWeight


def packable(weight: Tensor) -> bool:
    """Return True if a weight is an ordinary CPU tensor of a dtype that this machine can pack."""
    plain = type(weight) in (Tensor, nn.Parameter)
    return (
        plain
        and weight.device.type == "cpu"
        and weight.dtype in PACKABLE_DTYPES
        and _supported(weight.dtype)
    )


def _in_few_sizes(multiply: Product, states: Tensor) -> Tensor:
    """Multiply in pieces whose row counts are in `ROWS`; the last piece is padded with zeros."""
    if states.dim() == 1:  # not every product takes a single vector
        return _in_few_sizes(multiply, states[None])[0]
    rows = math.prod(states.shape[:-1])
    if rows in ROWS:
        return multiply(states)
    flat = states.reshape(rows, states.shape[-1])
    pieces = [
        multiply(F.pad(piece, (0, 0, 0, _next_size(len(piece)) - len(piece))))[: len(piece)]
        for piece in flat.split(ROWS[-1])
    ]
    product = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return product.reshape(*states.shape[:-1], product.shape[-1])


def _next_size(rows: int) -> int:
    """Return the smallest count in `ROWS` that is at least `rows`."""
    return next(size for size in ROWS if size >= rows)


_HANDLES = itertools.count()
# Operators take no packed weights, so a compiled program refers to a weight by its handle.
_PACKED: WeakValueDictionary[int, PackedWeight] = WeakValueDictionary()
_OPERATORS = library.Library("medusa", "DEF")
_OPERATORS.define("packed_product(Tensor states, Tensor handle, int features) -> Tensor")
_OPERATORS.impl(
    "packed_product", lambda states, handle, features: _PACKED[int(handle)](states), "CPU"
)
_OPERATORS.impl(
    "packed_product",
    lambda states, handle, features: states.new_empty((*states.shape[:-1], features)),
    "Meta",
)
_OPERATORS.impl("packed_product", library.fallthrough_kernel, "Autograd")


@cache
def _supported(dtype: torch.dtype) -> bool:
    """Return True if torch can pack weights of a dtype here; some CPUs lack 16-bit instructions."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        PackedWeight(torch.zeros(16, 16, dtype=dtype))(torch.zeros(1, 16, dtype=dtype))
    except (RuntimeError, AttributeError):
        return False
    return True
