"""Training of heads (Medusa-1) or heads and backbone (Medusa-2), and self-distillation data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data.chats import Example
    from .medusa1 import HeadMetrics, evaluate_heads, train_heads
    from .recipe import Recipe
    from .run import train
    from .source import Source

# Loaded when first used: training imports accelerate and rich, which decoding does not need.
_MODULES = {
    "Example": "..data.chats",
    "HeadMetrics": ".medusa1",
    "Recipe": ".recipe",
    "Source": ".source",
    "evaluate_heads": ".medusa1",
    "train": ".run",
    "train_heads": ".medusa1",
}

__all__ = ["Example", "HeadMetrics", "Recipe", "Source", "evaluate_heads", "train", "train_heads"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
