"""`generate` for `base.generate(custom_generate="folder-or-hub-id-of-heads")`.

The file `custom_generate/generate.py` beside the heads leads transformers here. Heads are loaded at
the first call, and stay with the base model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..formats import names
from ..generation.outputs import MedusaGenerateOutput
from .model import MedusaModel

ATTRIBUTE = "_medusa_heads"
"""Attribute of a base model that keeps its `Loaded`, so that both live equally long."""


class Loaded(dict[tuple[Any, ...], MedusaModel]):
    """The heads that were loaded last for a base model. Copies and pickles of it are empty."""

    def __reduce__(self) -> tuple[type[Loaded], tuple[()]]:
        return Loaded, ()


def generate(
    model: PreTrainedModel, heads: str | None = None, **kwargs: Any
) -> Tensor | MedusaGenerateOutput:
    """Generate with a base model and heads, several tokens a step.

    Args:
        model: the base model.
        heads: folder or hub id of the heads; by default the one that `custom_generate` names in the
            call of the base model's `generate`.
        kwargs: arguments of `MedusaModel.generate`, and of the hub, such as revision and token.

    Raises:
        ValueError: nothing names the heads, or they do not fit the base model.
    """
    # transformers does not tell a function the repository that it loaded the function from
    called = sys._getframe(1).f_locals.get("custom_generate")
    name = heads or (called if isinstance(called, str) else None)
    if name is None:
        raise ValueError("name the heads: generate(..., heads='folder-or-hub-id')")
    hub = names.chosen(kwargs, *names.HUB_ARGUMENTS)
    own = {key: value for key, value in kwargs.items() if key not in hub}
    return _with_heads(model, name, hub).generate(**own)


def _with_heads(base: PreTrainedModel, name: str, hub: dict[str, Any]) -> MedusaModel:
    """Return a base model with heads, which are loaded again only if they have changed."""
    loaded = base.__dict__.setdefault(ATTRIBUTE, Loaded())
    file = Path(name).expanduser().absolute() / names.WEIGHTS
    key = (name, hub.get("revision"), file, file.stat().st_mtime_ns if file.is_file() else None)
    if key not in loaded or loaded[key].base is not base:
        loaded.clear()
        loaded[key] = MedusaModel.from_pretrained(name, base=base, **hub)
    return loaded[key]
