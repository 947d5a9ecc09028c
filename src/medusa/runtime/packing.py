"""Linear layers that run packed: in place in a model that nobody else holds, beside the layers of
one that others hold.

Every change of a dense weight is noticed, because its bytes are hashed before each request, which
costs about what reading them costs. A weight that lives in packed form alone has nothing to notice:
    whoever asks for it gets it
unpacked, and it counts as dense until nobody holds it any more.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard, cast
from weakref import WeakKeyDictionary

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

from .products import Packed, PackedWeight, packable, packed, packed_together
from .twin import shadow

SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names that layers of one input have in most architectures: such siblings are packed as one
weight.
"""

_LOCK = threading.RLock()
"""Held while a layer changes between packed and dense."""


class PackedLinear(nn.Linear):
    """A linear layer whose weight lives in packed form until somebody asks for it; then it is an
    ordinary layer again.

    It is made of a plain layer in place (`pack_in_place`), so that whoever looks at it finds name,
    hooks and settings.
    """

    packed: Packed

    @property
    def requires_grad(self) -> bool:
        """Return whether the weight learns, as it did before it was packed."""
        return cast(LazyParameters, self._parameters).requires_grad

    def forward(self, states: Tensor) -> Tensor:
        """states [..., in] -> [..., out]."""
        if is_packed(self):
            return self.packed(states)
        return F.linear(states, self.weight, self.bias)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are of the plain layer: packed tensors can be neither."""
        parameters = dict.copy(self._parameters)
        if parameters["weight"] is None:
            parameters["weight"] = nn.Parameter(self.packed.dense(), self.requires_grad)
        return _plain, ({**self.__dict__, "_parameters": parameters, "packed": None},)


def _plain(state: dict[str, Any]) -> nn.Linear:
    """A plain layer with these attributes."""
    layer: nn.Linear = object.__new__(nn.Linear)
    layer.__dict__.update(state)
    del layer.__dict__["packed"]
    return layer


class PackedTwin(nn.Linear):
    """Stands in a twin of a model for a linear layer that keeps its dense weight, and runs
    packed.
    """

    packed: Packed

    def forward(self, states: Tensor) -> Tensor:
        """states [..., in] -> [..., out]."""
        return self.packed(states)


class LazyParameters(dict[str, Any]):
    """The parameters of a packed layer. Whatever reads the weight from them finds an ordinary
    parameter.

    Attribute access, state_dict, adapters and `to` all go through this dictionary.
    """

    def __init__(self, parameters: Mapping[str, Any], unpack: Callable[[], Tensor]):
        super().__init__({**parameters, "weight": None})
        self.requires_grad: bool = parameters["weight"].requires_grad
        self.unpack = unpack

    def restore(self) -> None:
        """Make the weight dense, unless it is."""
        with _LOCK:
            if super().get("weight") is None:
                # decoding may be what asks, and its tensors could not be trained
                with torch.inference_mode(False):
                    weight = nn.Parameter(self.unpack(), requires_grad=self.requires_grad)
                super().__setitem__("weight", weight)

    def __getitem__(self, name: str) -> Any:
        if name == "weight":
            self.restore()
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.restore()
        return super().get(name, default)

    def items(self) -> Any:
        self.restore()
        return super().items()

    def values(self) -> Any:
        self.restore()
        return super().values()

    def pop(self, *arguments: Any) -> Any:
        self.restore()
        return super().pop(*arguments)

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    def __iter__(
        self,
    ) -> Iterator[str]:  # makes `dict(self)` read the items rather than the table behind them
        return super().__iter__()


class Packing:
    """The packed linear layers of a module, kept up to date with it.

    Args:
        half: pack in 16 bits the float32 weights that float16 holds.
    """

    def __init__(self, half: bool = False) -> None:
        self.half = half
        self._known: WeakKeyDictionary[nn.Linear, tuple[bytes, Packed]] = WeakKeyDictionary()

    def refresh(self, module: nn.Module, owned: bool) -> dict[nn.Module, nn.Module]:
        """Pack what was not packed yet or has changed since; returns the layers that a twin runs in
        place of others.

        Args:
            module: a model that may have changed in any way since the last time.
            owned: whether nobody else holds the module, so that dense weights that nobody holds may
                go. Weights tied to others stay.
        """
        owners = (
            Counter(id(each) for part in module.modules() for each in held(part).values())
            if owned
            else Counter()
        )
        replaced: dict[nn.Module, nn.Module] = {}
        for siblings in _siblings(module):
            dense = [layer for layer in siblings if not _stays_packed(layer) and _packs(layer)]
            for layer, weight in zip(dense, self._packed(dense), strict=True):
                if owned and owners[id(layer.weight)] == 1 and not _held_elsewhere(layer):
                    pack_in_place(layer, weight)
                else:
                    replaced[layer] = shadow(layer, PackedTwin, packed=weight)
        return replaced

    def _packed(self, layers: list[nn.Linear]) -> list[Packed]:
        """The packed weights of sibling layers, as they are now."""
        if not layers:
            return []
        marks = [_hash(layer.weight) for layer in layers]
        known = [self._known.get(layer) for layer in layers]
        same = [
            each[1]
            for each, mark in zip(known, marks, strict=True)
            if each is not None and each[0] == mark
        ]
        if len(same) == len(layers) and all(map(_takes_bias, layers, same)):
            return same
        weights = list(packed_together(layers, self.half))
        self._known.update(zip(layers, zip(marks, weights, strict=True), strict=True))
        return weights


def unpack(module: nn.Module) -> None:
    """Make all packed layers of a module plain ones again."""
    for layer in module.modules():
        if isinstance(layer, PackedLinear):
            with _LOCK:
                parameters = dict(layer._parameters.items())
                layer.__class__ = nn.Linear  # type: ignore[assignment]
                layer._parameters = parameters
                del layer.__dict__["packed"]


def pack_in_place(layer: nn.Linear, weight: Packed) -> None:
    """Let a dense layer live in packed form. The layer works after each assignment: an interrupt
    may come between.
    """
    with _LOCK:
        parameters = LazyParameters(dict(layer._parameters.items()), weight.dense)
        layer.__dict__["packed"] = weight
        layer.__class__ = PackedLinear
        layer._parameters = parameters


class PackedStack:
    """Packed copies of weights stacked along a leading K [K, out, in], kept up to date."""

    def __init__(self, half: bool = False) -> None:
        self.half = half
        self._mark = b""
        self.weights: list[PackedWeight] = []

    def refresh(self, stack: Tensor) -> list[PackedWeight]:
        """Return the products with each of the K weights, packed anew where they have changed."""
        mark = _hash(stack)
        if mark != self._mark:
            self.weights = [packed(weight, None, self.half) for weight in stack.detach()]
            self._mark = mark
        return self.weights


def worth_packing(module: nn.Module) -> bool:
    """Return whether packed layers can run this module here: oneDNN, and floating-point weights on
    the CPU.
    """
    return any(is_packed(each) or _packs(each) for each in module.modules())


def is_packed(layer: nn.Module) -> TypeGuard[PackedLinear]:
    """Return whether a layer's weight lives in packed form alone."""
    return isinstance(layer, PackedLinear) and dict.get(layer._parameters, "weight") is None


def held(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters as they are, without unpacking any."""
    return {name: each for name, each in dict.items(module._parameters) if each is not None}


def _stays_packed(layer: nn.Linear) -> bool:
    """Return whether a layer lives in packed form, which takes the layer's bias as it is now."""
    return is_packed(layer) and _takes_bias(layer, layer.packed)


def _takes_bias(layer: nn.Linear, weight: Packed) -> bool:
    """Copy the layer's bias to its packed weight; False where that one was packed for another kind
    of bias.
    """
    theirs, ours = layer.bias, weight.bias
    if theirs is None or ours is None:
        return theirs is ours
    if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        return False
    ours.copy_(theirs.detach())
    return True


def _hash(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return (
        bytes(xxhash.xxh3_128_digest(cast(Any, flat.numpy())))
        + f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    )


def _held_elsewhere(layer: nn.Linear) -> bool:
    """Return whether somebody holds the layer's dense weight, itself or as another tensor over its
    storage.
    """
    weight = layer.weight
    storage = weight.untyped_storage()
    tensors = torch._C._storage_Use_Count(storage._cdata) - 1  # less the storage object just made
    names = sys.getrefcount(weight) - 3  # less the layer's own, ours, and the one of the question
    return bool(tensors > 1 or names > 0)


def _siblings(module: nn.Module) -> Iterator[list[nn.Linear]]:
    """The linear layers of a module, those `SHARING` an input together."""
    seen: set[nn.Linear] = set()
    for parent in module.modules():
        named = {"": module} if parent is module else {}
        named.update((name, child) for name, child in parent._modules.items() if child is not None)
        linear = {
            name: child
            for name, child in named.items()
            if isinstance(child, nn.Linear) and child not in seen
        }
        seen.update(linear.values())
        for names in SHARING:
            if all(name in linear for name in names):
                yield [linear.pop(name) for name in names]
        for layer in linear.values():
            yield [layer]


def _packs(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Plain layers only: a subclass (quantised, say) or a replaced forward (an offloaded layer's)
    goes its own way.
    """
    if type(layer) not in (nn.Linear, PackedLinear) or "forward" in layer.__dict__:
        return False
    return packable(cast(Tensor, layer.weight))


def setup(module: nn.Module) -> tuple[Any, ...]:
    """All that decides what a forward of the module does to its inputs; what is recorded of it
    holds only for this.

    Where weights and buffers lie (their values may change), settings, hooks, and how torch runs
    just now.
    """
    running = (
        torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    )
    return running, tuple(map(_own_setup, module.modules()))


def _own_setup(module: nn.Module) -> tuple[Any, ...]:
    tensors = [
        *held(module).values(),
        *(each for each in module._buffers.values() if each is not None),
    ]
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    own = [
        (name, value)
        for name, value in module.__dict__.items()
        if name not in ("_parameters", "_buffers", "_modules")
    ]
    settings = [(name, repr(value)) for name, value in own if _is_setting(value)]
    packed = module.packed.handle if is_packed(module) or isinstance(module, PackedTwin) else None
    return packed, tuple(map(Tensor.data_ptr, tensors)), tuple(map(id, hooks)), tuple(settings)


def _is_setting(value: Any) -> bool:
    """Plain values, and lists and dictionaries of them: training mode, scalings, which adapters are
    active.
    """
    if isinstance(value, dict):
        return all(map(_is_setting, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, (bool, int, float, str))
