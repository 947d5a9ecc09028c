"""Loading: the only place that turns a name into a model and a tokenizer."""

from __future__ import annotations

from .model import MedusaModel, load
from .named import NamedModel

__all__ = ["MedusaModel", "NamedModel", "load"]
