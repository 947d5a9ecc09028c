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
    from .acceptance import AcceptancePolicy, Greedy, Rejection, Typical
    from .decoding import DecodingStats
    from .generation import MedusaGenerateOutput, Session
    from .heads import MedusaConfig, MedusaHeads
    from .pretrained import MedusaModel
    from .tree import CandidateTree

__version__ = version("medusa-decoding")

_MODULES = {
    "AcceptancePolicy": "acceptance",
    "CandidateTree": "tree",
    "DecodingStats": "decoding",
    "Greedy": "acceptance",
    "MedusaConfig": "heads",
    "MedusaGenerateOutput": "generation",
    "MedusaHeads": "heads",
    "MedusaModel": "pretrained",
    "Rejection": "acceptance",
    "Session": "generation",
    "Typical": "acceptance",
}

__all__ = [
    "AcceptancePolicy",
    "CandidateTree",
    "DecodingStats",
    "Greedy",
    "MedusaConfig",
    "MedusaGenerateOutput",
    "MedusaHeads",
    "MedusaModel",
    "Rejection",
    "Session",
    "Typical",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
