"""Medusa: several tokens a step from a Hugging Face causal language model, with the same text.

    from medusa import MedusaModel

    model = MedusaModel.from_pretrained(heads)
    model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=200)

Importing the package costs nothing: a name's module is loaded when the name is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.acceptance import AcceptancePolicy, Greedy, Rejection, Typical
    from .core.engine import Engine
    from .core.heads import MedusaConfig, MedusaHeads
    from .core.request import DecodingStats, Event, Request
    from .core.tree import CandidateTree
    from .generation import Session
    from .generation.grammar import Grammar
    from .generation.outputs import MedusaGenerateOutput
    from .loading import MedusaModel

__version__ = version("medusa-decoding")

_MODULES = {
    "AcceptancePolicy": "core.acceptance",
    "CandidateTree": "core.tree",
    "DecodingStats": "core.request",
    "Engine": "core.engine",
    "Event": "core.request",
    "Grammar": "generation.grammar",
    "Greedy": "core.acceptance",
    "MedusaConfig": "core.heads",
    "MedusaGenerateOutput": "generation.outputs",
    "MedusaHeads": "core.heads",
    "MedusaModel": "loading",
    "Rejection": "core.acceptance",
    "Request": "core.request",
    "Session": "generation",
    "Typical": "core.acceptance",
}

__all__ = [
    "AcceptancePolicy",
    "CandidateTree",
    "DecodingStats",
    "Engine",
    "Event",
    "Grammar",
    "Greedy",
    "MedusaConfig",
    "MedusaGenerateOutput",
    "MedusaHeads",
    "MedusaModel",
    "Rejection",
    "Request",
    "Session",
    "Typical",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
