"""The weights of a module as arguments, so that one program serves all modules of a kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .packing import packed_weight, stored_parameters
from .products import Packed, PackedWeight, Share, SharedWeight
from .state import is_changed, settings
from .twin import shadow

PLACE = "layer_idx"
"""Attribute in which transformers stores the number of a layer."""


class LayerNumber:
    """The number of a layer in a program that serves many layers.

    A cache may be called with it. Code that computes with it raises TypeError, because the program
    would be wrong for other layers.
    """

    def _refuse(self, *_: object) -> Any:
        raise TypeError("a layer computes with its own number")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __floordiv__ = __mod__ = __index__ = __int__ = __float__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __hash__ = _refuse


class Weights:
    """The parameters, buffers and packed weights of a module.

    Args:
        module: a module, such as a decoder layer.

    Attributes:
        tensors: what a program of the module takes; of packed weights, their `arguments`.
        kind: equal for modules that compute the same function of their inputs and `tensors`; None
            for a module that has hooks, whose function is not known.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.tensors: list[Tensor] = []
        self._packed: set[PackedWeight] = set()
        kinds = [self._collect(each) for each in module.modules()]
        self.kind = None if None in kinds else repr(kinds)

    def _collect(self, module: nn.Module) -> Any:
        """Append the tensors of one module; return its kind."""
        if is_changed(module):
            return None
        if any(isinstance(value, Tensor) for value in module.__dict__.values()):
            return None
        own = [*stored_parameters(module).items(), *_buffers(module)]
        self.tensors += [tensor for _, tensor in own]
        shapes = [(name, each.shape, each.stride(), each.dtype) for name, each in own]
        plain = [(name, value) for name, value in settings(module) if name != PLACE]
        return type(module), shapes, plain, self._collect_packed(packed_weight(module))

    def _collect_packed(self, weight: Packed | None) -> Any:
        """Append the arguments of a packed weight, once for all layers; return its kind."""
        if weight is None:
            return None
        if isinstance(weight, SharedWeight):
            whole, part = weight.share.weight, (weight.part, weight.is_last)
        else:
            whole, part = weight, None
        if whole not in self._packed:
            self._packed.add(whole)
            self.tensors += whole.arguments
        return type(whole), whole.features, whole.dtype, part

    def replaced(self, tensors: Sequence[Tensor]) -> nn.Module:
        """Return a copy of the module that has other tensors, in the order of `tensors`."""
        return _Replacement(iter(tensors)).copy(self.module)


class _Replacement:
    def __init__(self, tensors: Iterator[Tensor]):
        self.tensors = tensors
        self.shares: dict[Share, Share] = {}
        self.copies: dict[nn.Module, nn.Module] = {}

    def copy(self, module: nn.Module) -> nn.Module:
        """Copy modules in the order of `modules()`, in which the tensors were collected."""
        if module in self.copies:
            return self.copies[module]
        parameters: dict[str, Any] = dict(dict.items(module._parameters))
        for name in stored_parameters(module):
            parameters[name] = next(self.tensors)
        buffers = {**module._buffers, **{name: next(self.tensors) for name, _ in _buffers(module)}}
        weight = packed_weight(module)
        changed: dict[str, Any] = {"_parameters": parameters, "_buffers": buffers}
        if weight is not None:
            changed["packed"] = self._packed(weight)
        if PLACE in module.__dict__:
            changed[PLACE] = LayerNumber()
        self.copies[module] = shadow(module, type(module), **changed)
        children = {name: child and self.copy(child) for name, child in module._modules.items()}
        self.copies[module].__dict__["_modules"] = children
        return self.copies[module]

    def _packed(self, weight: Packed) -> Any:
        if not isinstance(weight, SharedWeight):
            return self._product(weight)
        if weight.share not in self.shares:
            self.shares[weight.share] = Share(self._product(weight.share.weight))
        return SharedWeight(self.shares[weight.share], weight.part, weight.is_last)

    def _product(self, weight: PackedWeight) -> Any:
        return weight.as_argument([next(self.tensors) for _ in weight.arguments])


def _buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, each) for name, each in module._buffers.items() if each is not None]
