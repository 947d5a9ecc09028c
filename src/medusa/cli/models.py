"""The model that the argument MODEL names."""

from __future__ import annotations

import sys

import huggingface_hub
import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .. import demo, loading
from ..demo import smollm2
from ..loading import MedusaModel, NamedModel
from .options import ModelOptions
from .streams import note

DEMO, SMOLLM2 = "demo", "smollm2"
"""Names of the embedded model, and of SmolLM2-135M-Instruct with the heads in this package."""
HEADS = {DEMO: demo.heads_folder, SMOLLM2: smollm2.heads_folder}
"""Functions that return the folder of each model's heads."""
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Values of a device map that are not the name of a device."""


def load(
    options: ModelOptions, all_heads: bool = False
) -> tuple[MedusaModel, PreTrainedTokenizerBase]:
    """Load the model that the options choose, and its base model's tokenizer.

    A base model without heads decodes plainly; stderr says so.

    Args:
        all_heads: load also the heads that the stored tree does not use.

    Raises:
        FileNotFoundError: the name is a path, and there is no such folder.
        OSError: the name is neither a folder nor a hub id, or the hub cannot be reached.
        ValueError: the folder holds neither heads nor a model, `--base` is given for a model that
            has no heads, or a device is not there.
    """
    quiet_libraries()
    _check_device("--device", options.device)
    if options.device_map not in DEVICE_MAPS:
        _check_device("--device-map", options.device_map)
    named = find(options)
    model, tokenizer = loading.load(
        named,
        device=options.device,
        prepack=options.prepack,
        compiled=options.compile,
        all_heads=all_heads,
    )
    if named.heads is None:
        note(f"no Medusa heads in {options.model}: decoding plainly")
    return model, tokenizer


def folder_or_id(name: str) -> str:
    """Return a model's folder or hub id: for a name in `HEADS`, the folder of these heads."""
    return str(HEADS[name]()) if name in HEADS else name


def base_folder(name: str) -> str:
    """Return the folder of the base model for a name in `HEADS`, and any other name as it is."""
    if name == SMOLLM2:
        return str(smollm2.fetch(say=note))
    return str(demo.FOLDER / "base") if name == DEMO else name


def quiet_libraries() -> None:
    """Let transformers and huggingface_hub log nothing but errors, and hide piped progress bars."""
    logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    hide_piped_bars()


def hide_piped_bars() -> None:
    """Turn off transformers' progress bars where stderr is a log or a pipe."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def find(options: ModelOptions) -> NamedModel:
    """Find the heads and the base model that the options choose.

    Raises:
        FileNotFoundError, OSError, ValueError: see `load`.
    """
    if options.model in HEADS and options.base is not None:
        raise ValueError(f"'{options.model}' brings its own base model: leave out --base")
    place, base, dtype = folder_or_id(options.model), options.base, options.dtype
    if options.model == SMOLLM2:
        base = str(smollm2.fetch(say=note))
    if options.model == DEMO and dtype == "auto":
        dtype = "float32"  # as everywhere: it is stored in bfloat16 only to be small
    device_map = {} if options.device_map is None else {"device_map": options.device_map}
    return NamedModel.find(
        place,
        base,
        dtype=dtype,
        **device_map,
        **options.hub_arguments,
    )


def _check_device(option: str, name: str | None) -> None:
    """Check that this machine has a device that torch can use.

    Args:
        option: the option that names the device.
        name: the device; None is always there.

    Raises:
        ValueError: there is no such device; names the option and the devices that exist.
    """
    if name is None:
        return
    try:
        kind, index = torch.device(name).type, torch.device(name).index or 0
    except RuntimeError:
        raise ValueError(
            f"{option} {name}: no such kind of device; cpu, cuda and cuda:1, say, are"
        ) from None
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if kind != "cpu" and (accelerator is None or kind != accelerator.type):
        devices = "cpu alone" if accelerator is None else f"cpu and {accelerator.type}"
        raise ValueError(
            f"{option} {name}: torch {torch.__version__} finds {devices} here: leave it out, or "
            "name one"
        )
    if kind != "cpu" and index >= torch.accelerator.device_count():
        raise ValueError(
            f"{option} {name}: there are {torch.accelerator.device_count()} such devices, from 0 on"
        )
