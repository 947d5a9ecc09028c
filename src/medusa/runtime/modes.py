"""torch's modes: gradients and autocast, which an interrupt may leave changed."""

from __future__ import annotations

from types import BuiltinFunctionType
from typing import Any

import torch

KINDS = ("cpu", "cuda")
"""Types of devices whose autocast state is restored."""


class ModesKept:
    """A context that restores gradients and autocast as they were if its block raises.

    `torch.no_grad` and `torch.autocast` change a mode when they are entered. An interrupt right
    after that skips the exit. Gradients then stay off; or the autocast context stays open, and
    torch never empties its cache of converted weights: a later training with autocast would compute
    with the weights of its first step.
    """

    def __enter__(self) -> None:
        self.gradients = torch.is_grad_enabled()
        self.autocast = {kind: torch.is_autocast_enabled(kind) for kind in KINDS}
        self.contexts = _open_contexts()

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            return
        torch.set_grad_enabled(self.gradients)
        for device, enabled in self.autocast.items():
            torch.set_autocast_enabled(device, enabled)
        while _open_contexts() > self.contexts:
            torch.autocast_decrement_nesting()
        if not self.contexts:
            torch.clear_autocast_cache()


def _open_contexts() -> int:
    # torch tells the number only where it changes it; one call of C code, which `map` makes, cannot
    # be interrupted between the two changes
    changes = torch.autocast_increment_nesting, torch.autocast_decrement_nesting
    call: Any = BuiltinFunctionType.__call__
    return int(list(map(call, changes))[1])
