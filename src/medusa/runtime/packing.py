"""Linear layers whose weights are packed for the CPU (see `products`).

A model that only this library uses is packed in place, so that its dense weights can be freed. A
model that the user also holds stays as it is: a twin of it (see `twin`) holds packed copies.

Before each request the dense weights are hashed to notice changes, which takes about as long as
reading them once. A weight that only exists in packed form cannot change unnoticed: code that reads
it gets an unpacked parameter, and the layer stays dense until no one holds that parameter.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard, cast
from weakref import WeakKeyDictionary

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

from .narrow import Narrow, packed
from .products import Packed, PackedWeight, Share, SharedWeight, packable
from .twin import shadow

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of sibling layers that read the same input in most architectures; packed as one weight."""

_LOCK = threading.RLock()
"""Lock held while a layer changes between packed and dense."""


class PackedLinear(nn.Linear):
    """A linear layer whose weight exists in packed form only, until other code reads the weight.

    `pack_in_place` changes the class of an ordinary layer to this one, so that the layer keeps its
    identity, name, hooks and attributes. After the weight was read, it computes like `nn.Linear`.
    """

    packed: Packed

    @property
    def requires_grad(self) -> bool:
        """Return the `requires_grad` that the weight had before it was packed."""
        return cast(LazyParameters, self._parameters).requires_grad

    def forward(self, states: Tensor) -> Tensor:
        """Map states [..., in] to [..., out]."""
        if is_packed(self):
            return self.packed(states)
        return F.linear(states, self.weight, self.bias)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle the layer as an `nn.Linear`, because packed tensors support neither."""
        parameters = dict.copy(self._parameters)
        if parameters["weight"] is None:
            parameters["weight"] = nn.Parameter(self.packed.dense(), self.requires_grad)
        return _plain_linear, ({**self.__dict__, "_parameters": parameters, "packed": None},)


def _plain_linear(state: dict[str, Any]) -> nn.Linear:
    """Return an `nn.Linear` with the attributes of a pickled `PackedLinear`."""
    layer: nn.Linear = object.__new__(nn.Linear)
    layer.__dict__.update(state)
    del layer.__dict__["packed"]
    return layer


class PackedTwin(nn.Linear):
    """A packed linear layer in a twin, for a layer of the original that keeps its dense weight."""

    packed: Packed

    def forward(self, states: Tensor) -> Tensor:
        """Map states [..., in] to [..., out]."""
        return self.packed(states)


class LazyParameters(dict[str, Any]):
    """The `_parameters` of a packed layer; reading the weight unpacks it.

    Attribute access, `state_dict`, adapters and `to` all read the weight from this dictionary, so
    they find an ordinary parameter.

    Args:
        parameters: the parameters of the dense layer.
        unpack: returns the dense weight.
    """

    def __init__(self, parameters: Mapping[str, Any], unpack: Callable[[], Tensor]):
        super().__init__({**parameters, "weight": None})
        self.requires_grad: bool = parameters["weight"].requires_grad
        self.unpack = unpack

    def restore(self) -> None:
        """Unpack the weight if it is packed."""
        with _LOCK:
            if super().get("weight") is None:
                # The caller may be in inference mode, whose tensors could not be trained later.
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

    # CPython copies the entries of a dict directly unless a subclass overrides `__iter__`; with
    # this method `dict(self)` calls `__getitem__`.
    def __iter__(self) -> Iterator[str]:
        return super().__iter__()


class Packing:
    """The packed weights of a module's linear layers, updated when the module changes.

    Args:
        narrow: which weights are packed in fewer bits (see `narrow`).
    """

    def __init__(self, narrow: Narrow = None) -> None:
        self.narrow = narrow
        # The hash of the dense weight at packing time, and the packed weight, of each layer.
        self._packed_layers: WeakKeyDictionary[nn.Linear, tuple[bytes, Packed]] = (
            WeakKeyDictionary()
        )

    def refresh(self, module: nn.Module, owned: bool) -> dict[nn.Module, nn.Module]:
        """Pack the layers that are not packed yet or have changed since.

        Args:
            module: the model; it may have changed in any way since the last call.
            owned: True if only this library uses the module. Then its layers are packed in place,
                except those whose weight is tied to another or held by other code.

        Returns:
            The layers that could not be packed in place, with the layers that replace them in a
            twin of the module.
        """
        users = (
            Counter(id(p) for part in module.modules() for p in stored_parameters(part).values())
            if owned
            else Counter()
        )
        replaced: dict[nn.Module, nn.Module] = {}
        for siblings in _sibling_layers(module):
            dense = [layer for layer in siblings if not _stays_packed(layer) and _can_pack(layer)]
            for layer, weight in zip(dense, self._pack(dense), strict=True):
                if owned and users[id(layer.weight)] == 1 and not _is_held_elsewhere(layer):
                    pack_in_place(layer, weight)
                else:
                    replaced[layer] = shadow(layer, PackedTwin, packed=weight)
        return replaced

    def _pack(self, layers: list[nn.Linear]) -> list[Packed]:
        """Return the packed weights of sibling layers; pack them again if one has changed."""
        if not layers:
            return []
        hashes = [_hash(layer.weight) for layer in layers]
        entries = [self._packed_layers.get(layer) for layer in layers]
        unchanged = [
            entry[1]
            for entry, current in zip(entries, hashes, strict=True)
            if entry is not None and entry[0] == current
        ]
        if len(unchanged) == len(layers) and all(map(_update_bias, layers, unchanged)):
            return unchanged
        weights = list(_packed_together(layers, self.narrow))
        self._packed_layers.update(zip(layers, zip(hashes, weights, strict=True), strict=True))
        return weights


def unpack(module: nn.Module) -> None:
    """Turn all packed layers of a module into ordinary ones."""
    for layer in module.modules():
        if isinstance(layer, PackedLinear):
            with _LOCK:
                parameters = dict(layer._parameters.items())
                layer.__class__ = nn.Linear  # type: ignore[assignment]
                layer._parameters = parameters
                del layer.__dict__["packed"]


def pack_in_place(layer: nn.Linear, weight: Packed) -> None:
    """Turn a dense layer into a `PackedLinear` with this packed weight, and free the dense one."""
    with _LOCK:
        # An interrupt (Ctrl-C) may come between any two statements; in this order the layer works
        # after each of them.
        parameters = LazyParameters(dict(layer._parameters.items()), weight.dense)
        layer.__dict__["packed"] = weight
        layer.__class__ = PackedLinear
        layer._parameters = parameters


class PackedStack:
    """Packed copies of K weights that are stacked in one tensor [K, out, in].

    Args:
        narrow: which weights are packed in fewer bits (see `narrow`).
    """

    def __init__(self, narrow: Narrow = None) -> None:
        self.narrow = narrow
        self._stack_hash = b""
        self.weights: list[PackedWeight] = []

    def refresh(self, stack: Tensor) -> list[PackedWeight]:
        """Return the K packed weights; pack them again if the stack has changed."""
        current = _hash(stack)
        if current != self._stack_hash:
            self.weights = [packed(weight, None, self.narrow) for weight in stack.detach()]
            self._stack_hash = current
        return self.weights


def worth_packing(module: nn.Module) -> bool:
    """Return True if at least one layer of a module is packed or can be packed on this machine."""
    return any(is_packed(layer) or _can_pack(layer) for layer in module.modules())


def is_packed(layer: nn.Module) -> TypeGuard[PackedLinear]:
    """Return True if a layer's weight exists in packed form only."""
    return isinstance(layer, PackedLinear) and dict.get(layer._parameters, "weight") is None


def packed_weight(layer: nn.Module) -> Packed | None:
    """Return the packed weight by which a layer multiplies; None if it has none."""
    return layer.packed if is_packed(layer) or isinstance(layer, PackedTwin) else None


def stored_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that a module itself stores, without unpacking packed weights."""
    # `dict.items` bypasses `LazyParameters.items`, which would unpack.
    return {name: p for name, p in dict.items(module._parameters) if p is not None}


def _packed_together(layers: Sequence[nn.Linear], narrow: Narrow) -> Sequence[Packed]:
    """Pack the layers of one input as one weight, or separately if they differ in kind."""
    alike = {(layer.weight.dtype, layer.weight.shape[1], layer.bias is None) for layer in layers}
    if len(layers) == 1 or len(alike) > 1:
        return [packed(layer.weight, layer.bias, narrow) for layer in layers]
    bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
    share = Share(packed(torch.cat([layer.weight.detach() for layer in layers]), bias, narrow))
    ends = list(itertools.accumulate(len(layer.weight) for layer in layers))
    return [
        SharedWeight(share, slice(*ends_of), ends_of[1] == ends[-1])
        for ends_of in itertools.pairwise([0, *ends])
    ]


def _stays_packed(layer: nn.Linear) -> bool:
    """Return True if a layer is packed and its packed weight could take over the current bias."""
    return is_packed(layer) and _update_bias(layer, layer.packed)


def _update_bias(layer: nn.Linear, weight: Packed) -> bool:
    """Copy a layer's bias to its packed weight; return False if their shapes or dtypes differ."""
    current, target = layer.bias, weight.bias
    if current is None or target is None:
        return current is target
    if current.shape != target.shape or current.dtype != target.dtype:
        return False
    target.copy_(current.detach())
    return True


def _hash(tensor: Tensor) -> bytes:
    """Return a hash of a tensor's bytes, dtype and shape."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    digest = bytes(xxhash.xxh3_128_digest(cast(Any, flat.numpy())))
    return digest + f"{tensor.dtype} {tuple(tensor.shape)}".encode()


def _is_held_elsewhere(layer: nn.Linear) -> bool:
    """Return True if other code holds a layer's weight, or another tensor with the same storage."""
    weight = layer.weight
    storage = weight.untyped_storage()
    # Not counted: the storage object of the line above.
    tensors = torch._C._storage_Use_Count(storage._cdata) - 1
    # Not counted: the layer's own reference, the variable `weight`, and getrefcount's argument.
    references = sys.getrefcount(weight) - 3
    return bool(tensors > 1 or references > 0)


def _sibling_layers(module: nn.Module) -> Iterator[list[nn.Linear]]:
    """Yield all linear layers of a module; those of one group in `SIBLINGS` together."""
    seen: set[nn.Linear] = set()
    for parent in module.modules():
        children = {"": module} if parent is module else {}
        children.update(
            (name, child) for name, child in parent._modules.items() if child is not None
        )
        linear = {
            name: child
            for name, child in children.items()
            if isinstance(child, nn.Linear) and child not in seen
        }
        seen.update(linear.values())
        for names in SIBLINGS:
            if all(name in linear for name in names):
                yield [linear.pop(name) for name in names]
        for layer in linear.values():
            yield [layer]


def _can_pack(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Return True if a layer is an ordinary linear layer with a packable weight.

    Subclasses (quantised layers) and layers whose `forward` was replaced (offloaded layers) compute
    in ways of their own.
    """
    if type(layer) not in (nn.Linear, PackedLinear) or "forward" in layer.__dict__:
        return False
    return packable(cast(Tensor, layer.weight))
