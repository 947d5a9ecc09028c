"""What MODEL stands for on the command line: heads, a base model alone, or the embedded model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import typer
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .. import demo
from ..core.checks import Prepack
from ..core.engine import PLAIN
from ..formats import adapters, bases, names
from ..formats import native as storage
from ..formats.bases import Origin
from ..loading import MedusaModel

DEMO = "demo"
PLANS = ("auto", "balanced", "balanced_low_0", "sequential")
"""What a device map may be besides a device."""


def load(
    name: str,
    *,
    base: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    compiled: bool = False,
    half_weights: bool = False,
    all_heads: bool = False,
) -> tuple[MedusaModel, PreTrainedTokenizerBase]:
    """The model that `name` stands for, and its base model's tokenizer.

    Args:
        name: folder or hub id of Medusa heads, or of a base model, which then decodes plainly, or
            "demo".
        base: the base model, where it is not the one the heads name.
        dtype: number format of the weights; "auto" is the checkpoint's own.
        device: where the whole model goes.
        device_map: passed to transformers.
        revision: of `name` on the hub.
        trust_remote_code: passed to transformers.
        compiled: compile the base model's step at the first prefill.
        half_weights: pack weights of float32 in 16 bits where these hold them.
        all_heads: load heads, too, that the stored tree does not use.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: neither is there such a hub id, or it cannot be reached.
        ValueError: the folder holds neither heads nor a model, `base` is out of place, or a device
            is not there.
    """
    logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    hide_piped_bars()
    prepack: Prepack = "half" if half_weights else None
    _check_device("--device", device)
    _check_device("--device-map", None if device_map in PLANS else device_map)
    if name == DEMO:
        return _embedded(
            base, dtype, device, compiled=compiled, prepack=prepack, all_heads=all_heads
        )
    heads = names.find_heads(name, revision=revision)
    if heads is None and base is not None:
        raise ValueError(
            f"--base names the base model of Medusa heads, and {name} has none: leave it out"
        )
    source = (
        Origin(names.resolved(name), revision) if heads is None else _named_base(name, heads, base)
    )
    options = {"trust_remote_code": trust_remote_code, "revision": source.revision}
    hub: dict[str, Any] = {each: value for each, value in options.items() if value is not None}
    tokenizer = bases.load_tokenizer(source.name, **hub)
    if device_map is not None:
        hub["device_map"] = device_map
    model = bases.load(source.name, dtype=dtype, **hub)
    adapter = None if heads is None else storage.adapter(heads)
    if adapter is not None:
        model = adapters.apply(model, adapter).eval()
    if device is not None:
        model = model.to(device)
    if heads is not None:
        medusa = MedusaModel.from_pretrained(heads, base=model, all_heads=all_heads)
    else:
        typer.echo(f"no Medusa heads in {name}: decoding plainly", err=True)
        medusa = MedusaModel.from_base(model, num_heads=1, own_lm_head=False, tree=PLAIN)
    medusa.owns_base, medusa.compiled, medusa.prepack = True, compiled, prepack
    return medusa, tokenizer


def _check_device(option: str, name: str | None) -> None:
    """Raises ValueError where torch does not have a device here."""
    if name is None:
        return
    try:
        kind, index = torch.device(name).type, torch.device(name).index or 0
    except RuntimeError:
        raise ValueError(
            f"{option} {name}: no such kind of device; cpu, cuda and cuda:1, say, are"
        ) from None
    there = torch.accelerator.current_accelerator(check_available=True)
    if kind != "cpu" and (there is None or kind != there.type):
        found = "cpu alone" if there is None else f"cpu and {there.type}"
        raise ValueError(
            f"{option} {name}: torch {torch.__version__} finds {found} here: leave it out, or name "
            "one"
        )
    if kind != "cpu" and index >= torch.accelerator.device_count():
        raise ValueError(
            f"{option} {name}: there are {torch.accelerator.device_count()} such devices, from 0 on"
        )


def folder_or_id(name: str) -> str:
    """What `name` stands for: the folder of the embedded model's heads, or itself."""
    return str(demo.FOLDER / "heads") if name == DEMO else name


def hide_piped_bars() -> None:
    """No progress bars of transformers in logs and pipes."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def _named_base(name: str, heads: Path, base: str | None) -> Origin:
    """The base model of heads: the one that is asked for, or that they name."""
    if base is not None:
        return Origin(names.resolved(base))
    return storage.named_base(heads)


def _embedded(
    base: str | None, dtype: str, device: str | None, **loading: Any
) -> tuple[MedusaModel, PreTrainedTokenizerBase]:
    if base is not None:
        raise ValueError(f"'{DEMO}' brings its own base model: leave out --base")
    precision: dict[str, Any] = {} if dtype == "auto" else {"dtype": dtype}
    model, tokenizer = demo.load(**loading, **precision)
    model.owns_base = True
    if device is not None:
        model.to(device)
    return model, tokenizer
