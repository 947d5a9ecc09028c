"""Autocast contexts that an interrupt leaves open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType
from typing import Any

import torch

KINDS = ("cpu", "cuda")
"""Types of devices whose autocast state is restored."""


@contextmanager
def autocast_closed_on_failure() -> Iterator[None]:
    """Close the autocast contexts that were left open if the block ends by an exception.

    While autocast is on, a forward enters further autocast contexts. An interrupt right after an
    entry skips the exit, and the context stays open. torch then never empties its cache of
    converted weights: a later training with autocast would compute with the weights of its first
    step.
    """
    before = _open_contexts()
    enabled = {kind: torch.is_autocast_enabled(kind) for kind in KINDS}
    try:
        yield
    except BaseException:
        while _open_contexts() > before:
            torch.autocast_decrement_nesting()
        for kind, was_enabled in enabled.items():
            torch.set_autocast_enabled(kind, was_enabled)
        if not before:
            torch.clear_autocast_cache()
        raise


def _open_contexts() -> int:
    # torch tells the number only where it changes it; one call of C code, which `map` makes, cannot
    # be interrupted between the two changes
    changes = torch.autocast_increment_nesting, torch.autocast_decrement_nesting
    call: Any = BuiltinFunctionType.__call__
    return int(list(map(call, changes))[1])
