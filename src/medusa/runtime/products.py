"""Products with weights packed for the CPU, where verifying a few tokens then costs little more
than one.

A plain CPU linear layer reads its weights again for every few rows: four tokens cost three to four
    times what one
does, and no tree can pay. oneDNN's packed layout reads them once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from weakref import WeakValueDictionary

import torch
from torch import Tensor, library, nn
from torch.nn import functional as F

PACKED_ROWS = 16
"""The row count the layout is chosen for: about the size of the trees that pay on a CPU."""
PACKABLE = (torch.float32, torch.bfloat16, torch.float16)
ROWS = (*range(1, 17), 24, 32, 48, 64, 96, 128, 192, 256)
"""Row counts that are multiplied at once: few, because oneDNN keeps a program for each row count
and layer shape.
"""

Product = Callable[[Tensor], Tensor]


class PackedWeight:
    """A packed copy of a weight [out, in], and the product with it; equal to the plain one up to
    rounding.

    Attributes:
        bias: a copy of the layer's, which may be written to.
        handle: the number by which `medusa::packed_product` knows it.
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
        """states [..., in] -> [..., out], in the weight's dtype, or in autocast's where that is
        on.
        """
        if _as_operators.get():
            traced: Tensor = torch.ops.medusa.packed_product(states, self.handle, self.features)
            return traced
        return self.product(states)

    def product(self, states: Tensor) -> Tensor:
        """The same, computed now and never as an operator for tracing."""
        with torch.autocast("cpu", enabled=False):
            product = _in_few_sizes(self._multiply, states.to(self.dtype))
        return (
            product.to(torch.get_autocast_dtype("cpu"))
            if torch.is_autocast_enabled("cpu")
            else product
        )

    def dense(self) -> Tensor:
        """The weight again, exactly as it was."""
        return self.packed.to_dense().clone()


class HalfWeight(PackedWeight):
    """A packed copy of a float32 weight in 16 bits, half as much to read; products are summed in
    float32 (FBGEMM).

    For weights that float16 holds, as it does those of checkpoints in 16 bits but for some next to
    zero; these are rounded by at most 2^-25, and kept beside so that the weight comes back exactly.
    """

    @staticmethod
    def holds(weight: Tensor) -> bool:
        """Return whether a weight may be packed so."""
        if weight.dtype != torch.float32 or not sixteen_bits():
            return False
        return bool((weight.detach().half().float() - weight.detach()).abs().max() <= 2**-25)

    def _pack(self, weight: Tensor) -> None:
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, None)
        rounded = weight.half().float()
        self.lost = (rounded != weight).flatten().nonzero()[:, 0]
        self.values = weight.flatten()[self.lost]

    def _multiply(self, states: Tensor) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16(states, self.packed)
        return product if self.bias is None else product + self.bias

    def dense(self) -> Tensor:
        """The weight again, exactly as it was."""
        weight, _ = torch.ops.quantized.linear_unpack_fp16(self.packed)
        weight.view(-1)[self.lost] = self.values
        return weight


class SharedWeight:
    """The part of a packed weight that belongs to one of several layers with the same input.

    The first layer that is asked multiplies for all of them, and the last one drops the product.
    """

    def __init__(self, share: Share, part: slice, is_last: bool):
        self.share, self.part, self.is_last = share, part, is_last

    @property
    def handle(self) -> int:
        return self.share.weight.handle

    @property
    def bias(self) -> Tensor | None:
        return None if self.share.weight.bias is None else self.share.weight.bias[self.part]

    @property
    def dtype(self) -> torch.dtype:
        return self.share.weight.dtype

    def __call__(self, states: Tensor) -> Tensor:
        """states [..., in] -> [..., out]."""
        return self.share(states, drop=self.is_last)[..., self.part]

    def dense(self) -> Tensor:
        """The layer's own weight again, exactly as it was."""
        return self.share.weight.dense()[self.part].clone()


class Share:
    """A packed weight of several layers, and its last product.

    The product stands beside its states in one tuple, so that another thread sees both or neither.
    """

    def __init__(self, weight: PackedWeight):
        self.weight = weight
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, states: Tensor, drop: bool) -> Tensor:
        last = self._last
        product = last[1] if last is not None and last[0] is states else self.weight(states)
        self._last = None if drop else (states, product)
        return product


Packed = PackedWeight | SharedWeight


def packed(weight: Tensor, bias: Tensor | None, half: bool) -> PackedWeight:
    """Return a weight packed, in 16 bits where that is wanted and float16 holds it."""
    return (HalfWeight if half and HalfWeight.holds(weight) else PackedWeight)(weight, bias)


def packed_together(layers: Sequence[nn.Linear], half: bool) -> Sequence[Packed]:
    """Return one packed weight for layers of one input if they are alike; else one for each."""
    alike = {(layer.weight.dtype, layer.weight.shape[1], layer.bias is None) for layer in layers}
    if len(layers) == 1 or len(alike) > 1:
        return [packed(layer.weight, layer.bias, half) for layer in layers]
    bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
    share = Share(packed(torch.cat([layer.weight.detach() for layer in layers]), bias, half))
    ends = list(itertools.accumulate(len(layer.weight) for layer in layers))
    return [
        SharedWeight(share, slice(*ends_of), ends_of[1] == ends[-1])
        for ends_of in itertools.pairwise([0, *ends])
    ]


def packable(weight: Tensor) -> bool:
    """Return whether a weight can be packed: an ordinary floating-point tensor on a CPU, of a dtype
    packed here.
    """
    plain = type(weight) in (Tensor, nn.Parameter)
    return (
        plain
        and weight.device.type == "cpu"
        and weight.dtype in PACKABLE
        and _supported(weight.dtype)
    )


def _in_few_sizes(multiply: Product, states: Tensor) -> Tensor:
    """The product, by pieces whose row counts are among `ROWS`; the last piece is filled up with
    zeros.
    """
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
    return next(size for size in ROWS if size >= rows)


@contextmanager
def as_operators() -> Iterator[None]:
    """While the context lasts, products of this thread are operators that tracing does not look
    into.
    """
    before = _as_operators.set(True)
    try:
        yield
    finally:
        _as_operators.reset(before)


_as_operators: ContextVar[bool] = ContextVar("as_operators", default=False)
_HANDLES = itertools.count()
_PACKED: WeakValueDictionary[int, PackedWeight] = WeakValueDictionary()
_OPERATORS = library.Library("medusa", "DEF")
_OPERATORS.define("packed_product(Tensor states, int handle, int features) -> Tensor")
_OPERATORS.impl(
    "packed_product", lambda states, handle, features: _PACKED[handle].product(states), "CPU"
)
_OPERATORS.impl(
    "packed_product",
    lambda states, handle, features: states.new_empty((*states.shape[:-1], features)),
    "Meta",
)
_OPERATORS.impl("packed_product", library.fallthrough_kernel, "Autograd")


@cache
def _supported(dtype: torch.dtype) -> bool:
    """Return whether this torch and this processor pack weights of a dtype: some lack instructions
    for 16 bits.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        PackedWeight(torch.zeros(16, 16, dtype=dtype))(torch.zeros(1, 16, dtype=dtype))
    except (RuntimeError, AttributeError):
        return False
    return True


@cache
def sixteen_bits() -> bool:
    """Return whether this torch and this processor multiply by weights in 16 bits."""
    try:
        weight = torch.ops.quantized.linear_prepack_fp16(torch.zeros(16, 16), None)
        torch.ops.quantized.linear_dynamic_fp16(torch.zeros(1, 16), weight)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True
