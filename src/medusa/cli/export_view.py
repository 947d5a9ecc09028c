"""Output and files of `medusa export`."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from ..formats import native
from ..formats.export import ENGINES
from ..loading.export import Export
from .export import ExportOptions
from .models import find, load
from .options import ModelOptions
from .streams import console


def show_export(options: ExportOptions) -> None:
    """Say what will be written, write it, and print the command that starts the engine.

    Raises:
        ValueError: there are no heads, they need an adapter, or the engine does not compute them.
        OSError: the folder cannot be written.
    """
    chosen = ModelOptions(**{**options.hub_arguments, "model": options.model, "base": options.base})
    named = find(chosen)
    if named.heads is None:
        raise ValueError(f"{options.model} holds no Medusa heads: there is nothing to export")
    if native.adapter(named.heads) is not None:
        raise ValueError(
            f"{options.model} has an adapter, which no engine applies to the base model: merge it "
            "(model.base.merge_and_unload() in Python), save the base model and name it (--base)"
        )
    model, _ = load(chosen, all_heads=True)
    dtype = None if options.dtype == "auto" else getattr(torch, options.dtype)
    engine, screen = ENGINES[options.to], console()
    export = Export.of(model, engine, dtype)

    def say(line: str) -> None:
        screen.print(line, highlight=False, markup=False, soft_wrap=True)

    say(f"For {engine.title}: {export.config.num_heads} heads, {export.bytes / 1e6:,.1f} MB.")
    for change in export.changes():
        say(f"Note: {change}.")
    place = Path(named.base.name)
    base = str(place.resolve()) if place.exists() else named.base.name
    export.write(options.folder, base)
    say(f"Written to {options.folder}, checked by the engine's rules and read back. Start it with:")
    folder = shlex.quote(str(Path(options.folder)))
    say(engine.start.format(heads=folder, base=shlex.quote(base), count=export.config.num_heads))
