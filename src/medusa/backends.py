"""Linear layers whose weights are packed for the CPU, so that verifying a few tokens costs little more than one.

A plain CPU linear layer reads its weights again for every few rows: four tokens cost three to four times what one
does, and no tree can pay. oneDNN's packed layout reads them once. The base model itself is left as it was found: what
runs is a shadow of it, which shares every parameter and buffer and differs only in its linear layers.
A model that the library loaded itself need not hold its weights twice: `release` frees the dense ones.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, TypeVar

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
        self._original: tuple[Tensor | nn.Linear, Tensor | None] = (weight, bias)  # a tuple registers no parameter
        self._packed_as = _identity(weight)
        with torch.no_grad():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), PACKED_ROWS)
        self._bias = None if bias is None else bias.detach()

    @property
    def weight(self) -> Tensor:
        """The original weight."""
        original = self._original[0]
        return original.weight if isinstance(original, nn.Linear) else original

    @property
    def bias(self) -> Tensor | None:
        """The original bias."""
        return self._original[1]

    @property
    def stale(self) -> bool:
        """Whether the original weight has changed since it was packed."""
        return not self.released and _identity(self.weight) != self._packed_as

    @property
    def released(self) -> bool:
        """Whether the original weight lives on only here."""
        original = self._original[0]
        return isinstance(original, nn.Linear) and getattr(original._parameters, "released", False)

    def release(self, linear: nn.Linear) -> None:
        """Drop the dense weight of the layer that was packed; it comes back when anyone asks for it."""
        self._original = (linear, linear.bias)
        linear._parameters = _Released(linear._parameters, self)

    def restored(self) -> nn.Parameter:
        """The dense weight again, exactly as it was."""
        with torch.inference_mode(False), torch.no_grad():  # decoding asks too, and its tensors could not be trained
            weight = nn.Parameter(self._packed.to_dense().clone())
        self._packed_as = _identity(weight)
        return weight

    def forward(self, states: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(states, self._packed, self._bias, "none", [], "")


class _Released(dict[str, Any]):
    """The parameters of a linear layer whose weight lives in packed form until it is asked for.

    Whatever reads a module's parameters (attribute access, state_dict, adapters, `to`) goes through this dictionary and
    finds an ordinary parameter, which is then the layer's own again.
    """

    def __init__(self, parameters: dict[str, nn.Parameter | None], packed_layer: PackedLinear):
        weight = parameters["weight"]
        self.requires_grad = weight is not None and weight.requires_grad
        super().__init__({**parameters, "weight": None})
        self._packed_layer = packed_layer
        self.released = True

    def _restore(self) -> None:
        if self.released:
            self.released = False
            super().__setitem__("weight", self._packed_layer.restored().requires_grad_(self.requires_grad))

    def __getitem__(self, name: str) -> Any:
        self._restore()
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._restore()
        super().__setitem__(name, value)

    def get(self, name: str, default: Any = None) -> Any:
        self._restore()
        return super().get(name, default)

    def items(self) -> Any:
        self._restore()
        return super().items()

    def values(self) -> Any:
        self._restore()
        return super().values()

    def pop(self, *arguments: Any) -> Any:
        self._restore()
        return super().pop(*arguments)

    def __reduce__(self) -> Any:
        return dict, (dict(self.items()),)


def release(module: nn.Module, shadow: nn.Module) -> None:
    """Free the dense weights that the module's packed shadow holds as well; weights tied to others stay.

    The module goes on as before for whoever looks at it: a weight is unpacked when it is asked for.
    """
    layers = {name: each for name, each in shadow.named_modules() if isinstance(each, PackedLinear)}
    if all(each.released for each in layers.values()):
        return
    owners = Counter(id(parameter) for each in module.modules() for parameter in _own_parameters(each))
    for name, layer in layers.items():
        linear = module.get_submodule(name)
        if isinstance(linear, nn.Linear) and not layer.released and owners[id(linear.weight)] == 1:
            layer.release(linear)


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    if getattr(module._parameters, "released", False):
        return []
    return [parameter for parameter in module._parameters.values() if parameter is not None]


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
