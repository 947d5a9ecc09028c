"""Model names: find out whether a folder or hub id holds heads, a base model or an adapter."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from ..files import Schema, read_json
from . import adapters
from .checkpoint import INDEX, PICKLED, SAFE, Checkpoint, cache_arguments, located, tensor_files
from .gguf import SUFFIX, is_gguf

CONFIG, WEIGHTS, TREE = "config.json", "medusa_lm_head.safetensors", "medusa_tree.json"
"""File names of the native format."""
ADAPTER = "adapter"
"""Subfolder of a heads folder that holds the backbone's adapter."""
MERGED = "model"
"""Subfolder of a heads folder that holds a complete backbone, if it was trained with the heads."""
ORIGINAL = "medusa_lm_head.pt"
"""File name of the pickled heads that the original authors' code writes."""
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""Options of `from_pretrained` that are passed on to the hub."""


def chosen(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the options that have one of the given names."""
    return {name: options[name] for name in names if name in options}


def is_path(name: str) -> bool:
    """Return True if a name can only be a path, never a hub id (`owner/name`)."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


def is_native(folder: Path) -> bool:
    """Return True if a folder holds heads in the native format."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def check_config(folder: Path) -> None:
    """Raise ValueError if a folder's `config.json` exists but is not a JSON object."""
    if (folder / CONFIG).is_file():
        read_json(folder / CONFIG, Schema)


def resolved(name: str | Path) -> str:
    """Return the absolute path of a folder or a GGUF file, or the unchanged hub id.

    Raises:
        FileNotFoundError: the name can only be a path, and nothing is there.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() or is_gguf(folder):
        return str(folder.absolute())
    if folder.suffix.lower() == SUFFIX:
        raise FileNotFoundError(f"no file {name}: give a GGUF file that exists")
    if folder.is_file() or is_path(str(name)):
        raise FileNotFoundError(
            f"no folder {name}: give a folder that exists, a GGUF file, or a hub id (owner/name)"
        )
    return str(name)


def find_heads(name: str | Path, **hub: Any) -> Path | None:
    """Return the local folder of the heads in `name`; None if `name` holds a model without heads.

    Heads on the hub are downloaded.

    Args:
        name: folder or hub id, or a GGUF file, which holds no heads.
        hub: arguments of the hub, such as `revision` and `token`.

    Raises:
        FileNotFoundError: `name` can only be a folder, and the folder does not exist.
        OSError: `name` is not a folder, and the hub has no such id or cannot be reached.
        ValueError: `name` holds neither heads nor a model, or heads in an unsupported format.
    """
    place = resolved(name)
    if is_gguf(place):
        return None
    if not Path(place).is_dir():
        return _hub_heads(place, **hub)
    folder = Path(name).expanduser()
    if is_native(folder):
        return folder
    if (folder / ORIGINAL).is_file():
        raise ValueError(_original_format_message(str(name)))
    _refuse_heads_inside(str(name), Checkpoint.find(place))
    check_config(folder)
    if (folder / CONFIG).is_file() or (folder / adapters.ADAPTER_CONFIG).is_file():
        return None
    raise ValueError(f"{name} holds neither Medusa heads nor a model: it has no {CONFIG}")


def _hub_heads(name: str, **hub: Any) -> Path | None:
    """Find heads as `find_heads` does, for a hub id; use the cache if the hub is unreachable."""
    cached = cache_arguments(hub)
    try:
        hf_hub_download(name, WEIGHTS, **hub)
    except LocalEntryNotFoundError as error:
        if located(name, ORIGINAL, **cached):
            raise ValueError(_original_format_message(name)) from None
        if not located(name, CONFIG, **cached) and not located(
            name, adapters.ADAPTER_CONFIG, **cached
        ):
            raise OSError(
                f"no folder {name}, and the hub cannot be reached: give a folder that exists, or "
                "check the connection"
            ) from error
        _refuse_heads_inside(name, Checkpoint.find(name, **cached))
        return None
    except EntryNotFoundError:
        if HfApi(token=hub.get("token")).file_exists(name, ORIGINAL, revision=hub.get("revision")):
            raise ValueError(_original_format_message(name)) from None
        _refuse_heads_inside(name, Checkpoint.find(name, **cached), _hub_tensors(name, **hub))
        return None
    patterns = [CONFIG, WEIGHTS, TREE, f"{ADAPTER}/*", f"{MERGED}/*"]
    return Path(snapshot_download(name, allow_patterns=patterns, **hub))


def _original_format_message(name: str) -> str:
    return (
        f"{name} holds Medusa heads in the authors' format ({ORIGINAL}), which is not read yet: "
        "convert them with safetensors.torch.save_file("
        f"torch.load('{ORIGINAL}', weights_only=True), '{WEIGHTS}')"
    )


def _refuse_heads_inside(
    name: str, checkpoint: Checkpoint | None, tensors: Iterable[str] = ()
) -> None:
    """Raise ValueError if a model's weights contain Medusa heads.

    Args:
        name: folder or hub id, for the message.
        checkpoint: the model's weights on this machine, if any.
        tensors: names of the model's tensors, used if there is no local checkpoint.
    """
    names = tensors if checkpoint is None else checkpoint.places
    head = next((tensor for tensor in names if re.search(r"(^|\.)medusa_head\.", tensor)), None)
    if head is not None:
        raise ValueError(
            f"{name} is a whole model with Medusa heads inside ({head}, ...), a format that is "
            "not read yet. For new heads on its backbone load it with AutoModelForCausalLM and "
            "pass the model to MedusaModel.from_base"
        )


def _hub_tensors(name: str, **hub: Any) -> list[str]:
    """Return a hub model's tensor names without downloading weights; [] if that is impossible."""
    for index in (SAFE + INDEX, PICKLED + INDEX):
        try:
            return list(tensor_files(Path(hf_hub_download(name, index, **hub))))
        except EntryNotFoundError:
            continue
    try:
        api = HfApi(token=hub.get("token"))
        return list(
            api.parse_safetensors_file_metadata(name, SAFE, revision=hub.get("revision")).tensors
        )
    except (EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled):
        return []
