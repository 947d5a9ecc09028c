"""The execution state of a module: everything besides its inputs that a recorded forward assumes.

A captured graph or a compiled program may only run while the execution state is the one that it was
recorded with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .packing import packed_weight, stored_parameters

INTERNAL = frozenset(nn.Module().__dict__) - {"training"}
"""Attributes that torch itself stores in every module: parameters, children, hooks."""


def execution_state(module: nn.Module) -> tuple[Any, ...]:
    """Return a value that changes when a recorded forward of the module becomes invalid.

    The value has the addresses of parameters and buffers (their contents may change), hooks, plain
    attributes such as `training`, and torch's thread count and autocast settings.
    """
    torch_settings = (
        torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    )
    return torch_settings, tuple(map(_own_state, module.modules()))


def weights_state(module: nn.Module) -> tuple[Any, ...]:
    """Return a value that changes when a module may compute other results than before.

    Besides the execution state it has the version counters of parameters and buffers, which
    changes in place increase. Only changes through `.data` of a weight that is not packed go
    unnoticed.
    """
    versions = tuple(
        0 if tensor.is_inference() else tensor._version
        for each in module.modules()
        for tensor in (*stored_parameters(each).values(), *each._buffers.values())
        if tensor is not None
    )
    return execution_state(module), versions


def _own_state(module: nn.Module) -> tuple[Any, ...]:
    """Return the execution state of one module without its children."""
    buffers = [buffer for buffer in module._buffers.values() if buffer is not None]
    tensors = [*stored_parameters(module).values(), *buffers]
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    packed = packed_weight(module)
    handle = None if packed is None else packed.handle
    return handle, tuple(map(Tensor.data_ptr, tensors)), tuple(map(id, hooks)), settings(module)


def is_changed(module: nn.Module) -> bool:
    """Return True if a module has hooks or a replaced `forward`, and may compute otherwise."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or "forward" in module.__dict__


def settings(module: nn.Module) -> tuple[tuple[str, str], ...]:
    """Return the names and values of a module's plain attributes, such as `training` and scales."""
    return tuple(
        (name, repr(value))
        for name, value in module.__dict__.items()
        if name not in INTERNAL and _is_setting(value)
    )


def _is_setting(value: Any) -> bool:
    """Return True for plain values, and for lists, tuples and dictionaries of plain values.

    Such attributes are, for example, the training mode, scales, and the names of active adapters.
    """
    if isinstance(value, dict):
        return all(map(_is_setting, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, (bool, int, float, str))
