"""Linear layers whose weights are packed for the CPU, so that verifying a few tokens costs little more than one.

A plain CPU linear layer reads its weights again for every few rows: four tokens cost three to four times what one
does, and no tree can pay. oneDNN's packed layout reads them once. The base model is left as it was found: its layers
run packed only while `PackedLayers.running` lasts, one forward, so hooks, adapters and settings are always its own.
A model that the library loaded itself need not hold its weights twice: `release` frees the dense ones.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeGuard
from weakref import WeakValueDictionary

import torch
from torch import Tensor, library, nn

from .heads import MedusaHeads, Projection

PACKED_ROWS = 16
"""The row count the layout is chosen for: about the size of the trees that pay on a CPU."""
PACKABLE = (torch.float32, torch.bfloat16, torch.float16)
SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names that layers of one input have in most architectures: such siblings are packed as one weight."""


class PackedWeight:
    """A packed copy of a weight [out, in], and the product with it; equal to the plain one up to rounding.

    Attributes:
        handle: the number by which `medusa::packed_product` knows it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.bias = None if bias is None else bias.detach()
        self.features = len(weight)
        self.handle = next(_HANDLES)
        _PACKED[self.handle] = self
        with torch.no_grad():
            self._pack(weight.detach().contiguous())

    def _pack(self, weight: Tensor) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)

    def __call__(self, states: Tensor) -> Tensor:
        """states [..., in] -> [..., out]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(states, self.packed, self.bias, "none", [], "")
        return product

    def as_operator(self, states: Tensor) -> Tensor:
        """The same product as an operator that tracing does not look into."""
        product: Tensor = torch.ops.medusa.packed_product(states, self.handle, self.features)
        return product

    def dense(self) -> Tensor:
        """The weight again, exactly as it was."""
        return self.packed.to_dense().clone()


class HalfWeight(PackedWeight):
    """A packed copy of a float32 weight in 16 bits, half as much to read; products are summed in float32 (FBGEMM).

    For weights that float16 holds, as it does those of checkpoints in 16 bits but for some next to zero; these are
    rounded by at most 2^-25, and kept beside so that the weight comes back exactly.
    """

    @staticmethod
    def holds(weight: Tensor) -> bool:
        """Whether a weight may be packed so."""
        if weight.dtype != torch.float32 or not _sixteen_bits():
            return False
        return bool((weight.detach().half().float() - weight.detach()).abs().max() <= 2**-25)

    def _pack(self, weight: Tensor) -> None:
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, self.bias)
        rounded = weight.half().float()
        self.lost = (rounded != weight).flatten().nonzero()[:, 0]
        self.values = weight.flatten()[self.lost]

    def __call__(self, states: Tensor) -> Tensor:
        """states [..., in] -> [..., out]."""
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16(states, self.packed)
        return product

    def dense(self) -> Tensor:
        """The weight again, exactly as it was."""
        weight, _ = torch.ops.quantized.linear_unpack_fp16(self.packed)
        weight.view(-1)[self.lost] = self.values
        return weight


class SharedWeight:
    """One of several layers that read the same input: the first that is asked multiplies for all of them.

    Args:
        share: of all of them.
        part: which output features are this layer's.
    """

    def __init__(self, share: Share, part: slice):
        self.share, self.part = share, part
        self.handle = share.weight.handle

    def __call__(self, states: Tensor) -> Tensor:
        """states [..., in] -> [..., out]."""
        return self.share.product(states, self.share.weight, self.part)

    def as_operator(self, states: Tensor) -> Tensor:
        """The same product as an operator that tracing does not look into."""
        return self.share.product(states, self.share.weight.as_operator, self.part)

    def dense(self) -> Tensor:
        """The layer's own weight again, exactly as it was."""
        return self.share.weight.dense()[self.part].clone()


class Share:
    """A packed weight of several layers, and their last product until each has taken its part."""

    def __init__(self, weight: PackedWeight, parts: int):
        self.weight, self._parts = weight, parts
        self.forget()

    def forget(self) -> None:
        self._states: Tensor | None = None
        self._product: Tensor | None = None
        self._taken: set[int] = set()

    def product(self, states: Tensor, multiply: Callable[[Tensor], Tensor], part: slice) -> Tensor:
        """The part [..., out] of the product that is a layer's; a layer that asks again starts another product."""
        if self._product is None or states is not self._states or part.start in self._taken:
            self._states, self._product, self._taken = states, multiply(states), set()
        taken = self._product[..., part]
        self._taken.add(part.start)
        if len(self._taken) == self._parts:
            self.forget()
        return taken


_HANDLES = itertools.count()
_PACKED: WeakValueDictionary[int, PackedWeight] = WeakValueDictionary()
_OPERATORS = library.Library("medusa", "DEF")
_OPERATORS.define("packed_product(Tensor states, int handle, int features) -> Tensor")
_OPERATORS.impl("packed_product", lambda states, handle, features: _PACKED[handle](states), "CPU")
_OPERATORS.impl(
    "packed_product", lambda states, handle, features: states.new_empty((*states.shape[:-1], features)), "Meta"
)
_OPERATORS.impl("packed_product", library.fallthrough_kernel, "Autograd")


class PackedLayers:
    """Packed weights for the plain linear layers of a module that somebody else may hold and change.

    Args:
        half: in 16 bits, those that float16 holds.
    """

    def __init__(self, half: bool = False) -> None:
        self.half = half
        self._packed: dict[nn.Linear, tuple[Any, PackedWeight | SharedWeight]] = {}

    def __len__(self) -> int:
        return len(self._packed)

    def refresh(self, module: nn.Module) -> None:
        """Pack what was not packed yet or has changed since; forget what the module no longer has."""
        packed: dict[nn.Linear, tuple[Any, PackedWeight | SharedWeight]] = {}
        for siblings in _siblings(module):
            layers = [layer for layer in siblings if _is_released(layer) or _packs(layer)]
            if all(map(self._knows, layers)):
                packed.update((layer, self._packed[layer]) for layer in layers)
            else:
                marks = [_mark(layer.weight, layer.bias) for layer in layers]
                packed.update(zip(layers, zip(marks, _packed_together(layers, self.half), strict=True), strict=True))
        self._packed = packed

    def _knows(self, layer: nn.Linear) -> bool:
        """Whether the layer is packed as it is now."""
        return _is_released(layer) or (
            layer in self._packed and self._packed[layer][0] == _mark(layer.weight, layer.bias)
        )

    @contextmanager
    def running(self, only: nn.Module | None = None, as_operators: bool = False) -> Iterator[None]:
        """The layers run packed while the context lasts.

        Args:
            only: this layer alone, if it is packed.
            as_operators: for tracing.
        """
        layers = [layer for layer in self._packed if only is None or layer is only]
        for layer in layers:
            _, weight = self._packed[layer]
            layer.__dict__["forward"] = weight.as_operator if as_operators else weight
        try:
            yield
        finally:
            for layer in layers:
                layer.__dict__.pop("forward", None)
                _, weight = self._packed[layer]
                if isinstance(weight, SharedWeight):
                    weight.share.forget()

    def state(self, module: nn.Module) -> tuple[Any, ...]:
        """All that decides what a forward of the module does to its inputs; what is recorded of it holds only for this.

        Where weights and buffers lie (their values may change), settings, hooks, and how torch runs just now.
        """
        running = torch.get_num_threads(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        packed = tuple(weight.handle for _, weight in self._packed.values())
        return running, packed, tuple(map(_setup, module.modules()))

    def release(self, module: nn.Module) -> None:
        """Free the dense weights that are packed as well; weights tied to others stay.

        The module goes on as before for whoever looks at it: a weight is unpacked when it is asked for.
        """
        dense = [layer for layer in self._packed if not _is_released(layer)]
        owners = Counter(id(parameter) for each in module.modules() for parameter in _held(each)) if dense else {}
        for layer in dense:
            if owners[id(layer.weight)] == 1:
                layer._parameters = _Released(layer._parameters, partial(self._restored, layer))

    def unpack(self) -> None:
        """Give released layers their dense weights back."""
        for layer in self._packed:
            if _is_released(layer):
                layer.weight  # noqa: B018 (asking is what brings it back)

    def _restored(self, layer: nn.Linear, bias: nn.Parameter | None) -> nn.Parameter:
        """The dense weight of a released layer again, known as what was packed."""
        _, packed = self._packed[layer]
        with torch.inference_mode(False), torch.no_grad():  # decoding asks too, and its tensors could not be trained
            weight = nn.Parameter(packed.dense())
        self._packed[layer] = _mark(weight, bias), packed
        return weight


class _Released(dict[str, Any]):
    """The parameters of a linear layer whose weight lives in packed form until it is asked for.

    Whatever reads a module's parameters (attribute access, state_dict, adapters, `to`) goes through this dictionary and
    finds an ordinary parameter, which is then the layer's own again.
    """

    def __init__(self, parameters: dict[str, Any], restored: Callable[[nn.Parameter | None], nn.Parameter]):
        self.requires_grad = parameters["weight"].requires_grad
        super().__init__({**parameters, "weight": None})
        self.restored = restored
        self.released = True

    def _restore(self) -> None:
        if self.released:
            self.released = False
            weight = self.restored(super().get("bias"))
            super().__setitem__("weight", weight.requires_grad_(self.requires_grad))

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


class PackedHeads(nn.Module):
    """`MedusaHeads` whose own lm_heads are packed. The residual layers stay batched products, fastest for few rows."""

    def __init__(self, heads: MedusaHeads, weights: Tensor, half: bool = False):
        super().__init__()
        self.rule, self.output_bias, self.residual = heads.rule, heads.output_bias, heads.residual
        self.lm_heads = [packed(weight, None, half) for weight in weights]
        self._mark = half, _mark(weights)

    def is_of(self, weights: Tensor, half: bool) -> bool:
        """Whether these are the lm_heads that were packed, so, and unchanged."""
        return self._mark == (half, _mark(weights))

    def forward(self, hidden: Tensor, lm_head: Projection | None = None, first: int | None = None) -> Tensor:
        """As `MedusaHeads.forward`: hidden [..., H] -> logits [K, ..., V]."""
        states = self.residual(hidden, first)
        logits = torch.stack([project(state) for project, state in zip(self.lm_heads, states, strict=False)])
        return self.rule(logits if self.output_bias is None else logits + self.output_bias)


def packed_heads(heads: nn.Module, known: nn.Module | None = None, half: bool = False) -> nn.Module:
    """The heads with packed lm_heads, `known` where that is still right; the heads themselves without any to pack."""
    if not isinstance(heads, MedusaHeads) or heads.w2 is None or not _packable(heads.w2):
        return heads
    return (
        known if isinstance(known, PackedHeads) and known.is_of(heads.w2, half) else PackedHeads(heads, heads.w2, half)
    )


def worth_packing(module: nn.Module) -> bool:
    """Whether packed layers can run this module here: oneDNN, and floating-point weights on the CPU."""
    return any(_is_released(each) or _packs(each) for each in module.modules())


def _siblings(module: nn.Module) -> Iterator[list[nn.Linear]]:
    """The linear layers of a module, those `SHARING` an input together."""
    seen: set[nn.Linear] = set()
    for parent in module.modules():
        named = {"": module} if parent is module else {}
        named.update((name, child) for name, child in parent._modules.items() if child is not None)
        linear = {name: child for name, child in named.items() if isinstance(child, nn.Linear) and child not in seen}
        seen.update(linear.values())
        for names in SHARING:
            if all(name in linear for name in names):
                yield [linear.pop(name) for name in names]
        for layer in linear.values():
            yield [layer]


def packed(weight: Tensor, bias: Tensor | None, half: bool) -> PackedWeight:
    """A weight as it is packed: in 16 bits where that is wanted and can be."""
    return (HalfWeight if half and HalfWeight.holds(weight) else PackedWeight)(weight, bias)


def _packed_together(layers: list[nn.Linear], half: bool) -> list[PackedWeight] | list[SharedWeight]:
    """One weight for layers of one input, if they are alike; else one for each."""
    alike = {(layer.weight.dtype, layer.weight.shape[1], layer.bias is None) for layer in layers}
    if len(layers) == 1 or len(alike) > 1:
        return [packed(layer.weight, layer.bias, half) for layer in layers]
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    share = Share(packed(torch.cat([layer.weight for layer in layers]), bias, half), len(layers))
    ends = list(itertools.accumulate(len(layer.weight) for layer in layers))
    return [SharedWeight(share, slice(begin, end)) for begin, end in itertools.pairwise([0, *ends])]


def _packs(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Plain layers only: a subclass (quantised, say) or a replaced forward (an offloaded layer's) goes its own way."""
    return type(layer) is nn.Linear and "forward" not in layer.__dict__ and _packable(layer.weight)


def _packable(weight: Tensor) -> bool:
    plain = type(weight) in (Tensor, nn.Parameter)
    return plain and weight.device.type == "cpu" and weight.dtype in PACKABLE and _supported(weight.dtype)


@cache
def _supported(dtype: torch.dtype) -> bool:
    """Whether this torch and this processor pack weights of a dtype: some lack instructions for 16 bits."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        PackedWeight(torch.zeros(16, 16, dtype=dtype))(torch.zeros(1, 16, dtype=dtype))
    except (RuntimeError, AttributeError):
        return False
    return True


@cache
def _sixteen_bits() -> bool:
    """Whether this torch and this processor multiply by weights in 16 bits."""
    try:
        weight = torch.ops.quantized.linear_prepack_fp16(torch.zeros(16, 16), None)
        torch.ops.quantized.linear_dynamic_fp16(torch.zeros(1, 16), weight)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


def _is_released(layer: nn.Module) -> bool:
    return getattr(layer._parameters, "released", False)


def _held(module: nn.Module) -> list[nn.Parameter]:
    if _is_released(module):
        return []
    return [parameter for parameter in module._parameters.values() if parameter is not None]


def _setup(module: nn.Module) -> tuple[Any, ...]:
    """A module's own part of `PackedLayers.state`."""
    tensors = [*_held(module), *(each for each in module._buffers.values() if each is not None)]
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    own = [
        (name, value) for name, value in module.__dict__.items() if name not in ("_parameters", "_buffers", "_modules")
    ]
    settings = [(name, repr(value)) for name, value in own if _is_setting(value)]
    return id(module), tuple(map(Tensor.data_ptr, tensors)), tuple(map(id, hooks)), tuple(settings)


def _is_setting(value: Any) -> bool:
    """Plain values, and lists and dictionaries of them: training mode, scalings, which adapters are active."""
    if isinstance(value, dict):
        return all(map(_is_setting, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _mark(weight: Tensor, bias: Tensor | None = None) -> tuple[Any, ...]:
    """What changes when a weight is replaced or written to; some values too, for writes that leave no other trace."""
    some = weight.detach().flatten()[:: max(1, weight.numel() // 7)].tolist() if weight.is_contiguous() else None
    lies = weight.data_ptr(), None if bias is None else bias.data_ptr()
    return *lies, -1 if weight.is_inference() else weight._version, some
