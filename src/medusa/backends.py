"""Linear layers whose weights are packed for the CPU, so that verifying a few tokens costs little more than one.

A plain CPU linear layer reads its weights again for every few rows: four tokens cost three to four times what one
does, and no tree can pay. oneDNN's packed layout reads them once. The base model itself is left as it was found: what
runs is a shadow of it, which shares every parameter and buffer and differs only in its linear layers.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

PACKED_ROWS = 16
"""The row count the layout is chosen for: about the size of the trees that pay on a CPU."""
PACKABLE = (torch.float32, torch.bfloat16, torch.float16)


class PackedLinear(nn.Module):
    """`nn.Linear` on a packed copy of its weight; equal to it up to rounding.

    Args:
        linear: the layer to pack. It is kept, so that a later change of its weight is noticed.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self._linear = [linear]  # in a list, so that it is not registered as a child
        self._packed_as = _identity(linear.weight)
        with torch.no_grad():
            self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), PACKED_ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    @property
    def weight(self) -> Tensor:
        """The original layer's weight."""
        return self._linear[0].weight

    @property
    def bias(self) -> Tensor | None:
        """The original layer's bias."""
        return self._linear[0].bias

    @property
    def stale(self) -> bool:
        """Whether the original's weight has changed since it was packed."""
        return _identity(self.weight) != self._packed_as

    def forward(self, states: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "none", [], "")


def worth_packing(module: nn.Module) -> bool:
    """Whether packed layers can run this module here: oneDNN, and floating-point weights on the CPU."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return any(_packable(each) for each in module.modules())


def packed(module: Module) -> Module:
    """A shadow of the module whose linear layers run packed; everything else is shared with the original."""
    if _packable(module):
        return PackedLinear(module)  # type: ignore[arg-type, return-value]
    shadow = copy.copy(module)
    shadow._modules = {name: child if child is None else packed(child) for name, child in module._modules.items()}
    return shadow


def is_stale(shadow: nn.Module) -> bool:
    """Whether any packed layer's original has changed: loaded, trained, merged or moved."""
    return any(each.stale for each in shadow.modules() if isinstance(each, PackedLinear))


def _packable(module: nn.Module) -> bool:
    return type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype in PACKABLE


def _identity(weight: Tensor) -> tuple[int, int]:
    """What changes when a weight is replaced or written to."""
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version
