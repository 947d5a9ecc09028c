"""A module run with some of its parts replaced, while the module itself stays untouched.

Nothing is patched or hooked, so that an interrupt leaves nothing behind and threads do not meet: a
    twin is a second
tree of module objects over the same parameters, buffers, hooks and settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def twin(module: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Return a twin of `module` with some of its descendants replaced; the module itself where none
    of them is inside.

    Only ancestors of what is replaced get an object of their own; all else is shared. Twins are
    cheap, and are made anew when the module may have changed.
    """
    return _twin(module, dict(replaced))


def _twin(module: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in known:
        children = {name: child and _twin(child, known) for name, child in module._modules.items()}
        if all(children[name] is child for name, child in module._modules.items()):
            known[module] = module
        else:
            known[module] = shadow(module, type(module), _modules=children)
    return known[module]


def shadow(module: nn.Module, kind: type[nn.Module], **changed: Any) -> Any:
    """Return another object with a module's attributes, but for those that are given."""
    other = object.__new__(kind)
    other.__dict__.update(
        {name: _rebound(value, module, other) for name, value in module.__dict__.items()}
    )
    other.__dict__.update(changed)
    return other


def _rebound(value: Any, module: nn.Module, other: nn.Module) -> Any:
    """An attribute of a module for its twin. accelerate sets `forward` to a function that is bound
    to the module.
    """
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, other)
    if isinstance(value, partial) and any(argument is module for argument in value.args):
        return partial(
            value.func,
            *(other if each is module else each for each in value.args),
            **value.keywords,
        )
    return value


class Recorder(nn.Module):
    """Stands in a twin for the module `inner`, and remembers the first argument of its last call.

    Attributes:
        states: that argument [B, P, ...]; None before the first call.
        passed_on: how many of the P the inner module gets; None is all of them.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.states: Tensor | None = None
        self.passed_on: int | None = None

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.states = states
        return self.inner(
            states if self.passed_on is None else states[:, : self.passed_on], *args, **kwargs
        )

    def __getattr__(self, name: str) -> Any:
        """Weights and settings are the inner module's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class Runner:
    """A model run with some layers replaced, and what its output projection reads.

    Args:
        model: called with keyword arguments; gives an output with `logits`.
        head: its output projection.
        replaced: layers of the model and what runs in their place.
    """

    def __init__(self, model: nn.Module, head: nn.Module, replaced: Mapping[nn.Module, nn.Module]):
        self.head = twin(head, replaced)
        self._recorder = Recorder(self.head)
        self.model = twin(model, {**replaced, head: self._recorder})

    def __call__(self, passed_on: int | None = None, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Run the model; returns logits [B, P, V] and what the projection read [B, P, H].

        Args:
            passed_on: compute the logits of only so many positions.

        Raises:
            RuntimeError: the model does not call its output projection, because its `forward` was
                replaced.
        """
        self._recorder.states, self._recorder.passed_on = None, passed_on
        logits = self.model(**inputs, return_dict=True).logits
        states, self._recorder.states = self._recorder.states, None
        if states is None:
            raise RuntimeError(
                "the base model's forward does not call its lm_head, because it was replaced (by "
                "torch.compile, say): "
                "load the model without that; compiled=True compiles its step"
            )
        return logits, states

    def project(self, states: Tensor) -> Tensor:
        """The output projection alone: states [..., H] -> [..., V], in the projection's dtype."""
        weight = dict.get(self.head._parameters, "weight")
        dtype = (
            weight.dtype
            if isinstance(weight, Tensor)
            else getattr(getattr(self.head, "packed", None), "dtype", None)
        )
        if (
            dtype is not None
            and dtype.is_floating_point
            and not torch.is_autocast_enabled(states.device.type)
        ):
            states = states.to(dtype)
        logits: Tensor = self.head(states)
        return logits
