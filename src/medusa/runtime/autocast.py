"""Autocast contexts that an interrupt leaves open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def autocast_closed_on_failure() -> Iterator[None]:
    """Close the autocast contexts that were left open if the block ends by an exception.

    Where autocast is on, every forward enters some, and an interrupt may come between an entry and
    the block that it guards. While one is open, torch never empties its cache of converted weights:
    a later training with autocast would compute with the weights of its first step.
    """
    before = _open_contexts()
    try:
        yield
    except BaseException:
        while _open_contexts() > before:
            torch.autocast_decrement_nesting()
        if not before:
            torch.clear_autocast_cache()
        raise


def _open_contexts() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()
