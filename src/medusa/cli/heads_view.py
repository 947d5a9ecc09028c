"""Output of `medusa inspect` and `medusa convert`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from ..formats import names
from ..formats.description import Description
from ..formats.stored import WEIGHTS
from ..loading import NamedModel
from ..loading.convert import convert
from .models import folder_or_id, quiet_libraries
from .streams import console, note


def show_description(name: str, hub: Mapping[str, Any]) -> None:
    """Print what heads are made of, and what is odd about them.

    Args:
        name: folder or hub id of heads, or "demo" or "smollm2".
        hub: arguments of the hub.

    Raises:
        ValueError: `name` holds no heads, or they cannot be read.
        OSError: there is no such folder or hub id.
    """
    quiet_libraries()
    folder = names.find_heads(folder_or_id(name), **names.chosen(dict(hub), *names.HUB_ARGUMENTS))
    if folder is None:
        raise ValueError(f"{name} holds no Medusa heads: it is a model without them")
    description = Description.of(folder)
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, text in description.rows():
        table.add_row(label, text)
    odd = description.odd()
    for number, sentence in enumerate(odd):
        table.add_row("odd" if number == 0 else "", sentence)
    console().print(table, highlight=False, markup=False)


def show_converted(
    source: str, destination: Path, base: str | None, hub: Mapping[str, Any]
) -> None:
    """Convert heads, and print what was written.

    Raises:
        ValueError, OSError: see `NamedModel.find` and `convert`.
    """
    quiet_libraries()
    folder = destination.expanduser()
    named = NamedModel.find(folder_or_id(source), base, **hub)
    converted = convert(named, folder)
    size = (folder / WEIGHTS).stat().st_size / 1e6
    say = partial(console().print, highlight=False, markup=False, soft_wrap=True)
    say(f"read {source}: {converted.kind}")
    say(f"written to {destination}: {', '.join(converted.files)} ({size:,.1f} MB)")
    say(f"heads: {converted.config.num_heads}; base model, seen from there: {converted.base}")
    if not converted.compared:
        note(
            f"{named.base.name} cannot be read here, so its sizes were not compared with the heads'"
        )
