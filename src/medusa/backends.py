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
from torch.nn import functional

from .heads import MedusaHeads, Projection

Module = TypeVar("Module", bound=nn.Module)

PACKED_ROWS = 16
"""The row count the layout is chosen for: about the size of the trees that pay on a CPU."""
PACKABLE = (torch.float32, torch.bfloat16, torch.float16)


class PackedLinear(nn.Module):
    """`nn.Linear` on a packed copy of its weight; equal to it up to rounding.

    Args:
        weight: [out, in]; remembered, so that a later change of it is noticed.
        bias: [out] or None; shared.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self._original = (weight, bias)  # in a tuple, so that they are not registered as parameters
        self._packed_as = _identity(weight)
        with torch.no_grad():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), PACKED_ROWS)
        self._bias = None if bias is None else bias.detach()

    @property
    def weight(self) -> Tensor:
        """The original weight."""
        return self._original[0]

    @property
    def bias(self) -> Tensor | None:
        """The original bias."""
        return self._original[1]

    @property
    def stale(self) -> bool:
        """Whether the original weight has changed since it was packed."""
        return _identity(self.weight) != self._packed_as

    def forward(self, states: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(states, self._packed, self._bias, "none", [], "")


class PackedHeads(nn.Module):
    """`MedusaHeads` on packed weights. The first layer of all heads reads the same states and is one product."""

    def __init__(self, heads: MedusaHeads):
        super().__init__()
        self.config, self.rule, self.output_bias = heads.config, heads.rule, heads.output_bias
        biases = [bias[:, 0] for bias in heads.b1] or [None] * len(heads.w1)
        layers = list(zip(heads.w1, biases, strict=True))
        self.first = [
            PackedLinear(weight.flatten(0, 1), None if bias is None else bias.flatten()) for weight, bias in layers[:1]
        ]
        self.later = [
            [PackedLinear(one, None if bias is None else bias[k]) for k, one in enumerate(weight)]
            for weight, bias in layers[1:]
        ]
        self.lm_heads = [] if heads.w2 is None else [PackedLinear(weight) for weight in heads.w2]
        self._packed_as = [_identity(parameter) for parameter in heads.parameters()]
        self._original = (heads,)

    @property
    def stale(self) -> bool:
        """Whether the heads have changed since they were packed."""
        return self._packed_as != [_identity(parameter) for parameter in self._original[0].parameters()]

    def forward(self, hidden: Tensor, lm_head: Projection) -> Tensor:
        """As `MedusaHeads.forward`: hidden [B, H] -> logits [K, B, V]."""
        states = hidden.expand(self.config.num_heads, *hidden.shape)
        for layer in self.first:
            states = states + functional.silu(layer(hidden).unflatten(-1, (self.config.num_heads, -1)).movedim(-2, 0))
        for layers in self.later:
            product = torch.stack([layer(state) for layer, state in zip(layers, states, strict=True)])
            states = states + functional.silu(product)
        if not self.lm_heads:
            return self.rule(lm_head(states))
        logits = torch.stack([project(state) for project, state in zip(self.lm_heads, states, strict=True)])
        return self.rule(logits if self.output_bias is None else logits + self.output_bias)


def worth_packing(module: nn.Module) -> bool:
    """Whether packed layers can run this module here: oneDNN, and floating-point weights on the CPU."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return any(isinstance(each, nn.Linear) and _packs(each) for each in module.modules())


def packed(module: Module) -> Module:
    """A shadow of the module whose linear layers run packed; everything else is shared with the original."""
    if isinstance(module, MedusaHeads):
        parameter = next(module.parameters(), None)
        return module if parameter is None or not _packable(parameter) else PackedHeads(module)  # type: ignore[return-value]
    if isinstance(module, nn.Linear) and _packs(module):
        return PackedLinear(module.weight, module.bias)  # type: ignore[return-value]
    shadow = copy.copy(module)
    shadow._modules = {name: child if child is None else packed(child) for name, child in module._modules.items()}
    return shadow


def is_stale(shadow: nn.Module) -> bool:
    """Whether any packed weight's original has changed: loaded, trained, merged or moved."""
    return any(each.stale for each in shadow.modules() if isinstance(each, (PackedLinear, PackedHeads)))


def _packs(linear: nn.Linear) -> bool:
    """Plain layers only: a subclass (quantised, say) has a forward of its own."""
    return type(linear) is nn.Linear and _packable(linear.weight)


def _packable(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in PACKABLE


def _identity(weight: Tensor) -> tuple[int, int]:
    """What changes when a weight is replaced or written to."""
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version
