"""Twins: copies of a module tree that share all tensors, with some submodules replaced.

A twin runs a model in another way without patching or hooking the model itself. An interrupt
therefore leaves no changes behind, and threads do not disturb each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def twin(module: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Return a twin of a module; the module itself if it contains none of the replaced modules.

    Only the ancestors of replaced modules get new objects; the twin shares all other modules and
    all parameters, buffers, hooks and attributes. A twin is cheap and does not follow later changes
    of the module tree, so create a new one when the module may have changed.

    Args:
        module: the original.
        replaced: modules within it, with their replacements.
    """
    return _twin(module, dict(replaced))


def _twin(module: nn.Module, twins: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return the twin of a module and store it in `twins`, so that shared modules stay shared."""
    if module not in twins:
        children = {name: child and _twin(child, twins) for name, child in module._modules.items()}
        if all(children[name] is child for name, child in module._modules.items()):
            twins[module] = module
        else:
            twins[module] = shadow(module, type(module), _modules=children)
    return twins[module]


def shadow(module: nn.Module, kind: type[nn.Module], **changed: Any) -> Any:
    """Return a new object of class `kind` with a module's attributes, except the changed ones."""
    other = object.__new__(kind)
    other.__dict__.update(
        {name: _rebound(value, module, other) for name, value in module.__dict__.items()}
    )
    other.__dict__.update(changed)
    return other


def _rebound(value: Any, module: nn.Module, other: nn.Module) -> Any:
    """Return an attribute of a module, bound to its twin if it is bound to the module.

    accelerate, for example, sets `forward` to a function that is bound to the module.
    """
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, other)
    if isinstance(value, partial) and any(argument is module for argument in value.args):
        return partial(
            value.func,
            *(other if argument is module else argument for argument in value.args),
            **value.keywords,
        )
    return value


class Recorder(nn.Module):
    """A wrapper of a module in a twin that records the input of the module's last call.

    Attributes:
        inner: the wrapped module.
        states: the recorded input [B, P, ...]; None before the first call.
        passed_on: number of leading positions that the inner module processes; None means all P.
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
        """Return an attribute of the inner module, such as a weight, if the recorder lacks it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class Runner:
    """A model with some layers replaced that also returns the input of its output projection.

    Args:
        model: called with keyword arguments; returns an output with `logits`.
        projection: the model's output projection.
        replaced: layers of the model, with their replacements.
    """

    def __init__(
        self, model: nn.Module, projection: nn.Module, replaced: Mapping[nn.Module, nn.Module]
    ):
        self.projection = twin(projection, replaced)
        self._recorder = Recorder(self.projection)
        self.model = twin(model, {**replaced, projection: self._recorder})

    def __call__(self, passed_on: int | None = None, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Run the model on inputs of B rows and P positions.

        Args:
            passed_on: compute logits for the first `passed_on` positions only; None means all P.
            inputs: arguments of the model.

        Returns:
            logits [B, passed_on, V] and the projection's input [B, P, H].

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
                "torch.compile, say): load the model without that; compiled=True compiles its step"
            )
        return logits, states

    def project(self, states: Tensor) -> Tensor:
        """Apply only the output projection: map states [..., H] to logits [..., V]."""
        dtype = self._projection_dtype()
        is_autocast = torch.is_autocast_enabled(states.device.type)
        if dtype is not None and dtype.is_floating_point and not is_autocast:
            states = states.to(dtype)
        logits: Tensor = self.projection(states)
        return logits

    def _projection_dtype(self) -> torch.dtype | None:
        """Return the dtype of the projection's weight, without unpacking a packed one."""
        weight = dict.get(self.projection._parameters, "weight")
        if isinstance(weight, Tensor):
            return weight.dtype
        return getattr(getattr(self.projection, "packed", None), "dtype", None)
