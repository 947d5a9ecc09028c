"""Names of models: each is a folder or hub id of Medusa heads, of a base model, or of an
adapter.
"""

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

CONFIG, WEIGHTS, TREE = "config.json", "medusa_lm_head.safetensors", "medusa_tree.json"
ADAPTER = "adapter"
"""Folder of an adapter within the folder of its heads."""
MERGED = "model"
"""Folder of a whole backbone that was trained along with its heads, within their folder."""
ORIGINAL = "medusa_lm_head.pt"
"""The heads of the authors' code, as a pickle."""
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def chosen(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return those of the options that have one of these names."""
    return {name: options[name] for name in names if name in options}


def is_path(name: str) -> bool:
    """Return whether a name can only be a folder's, not a hub id."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


def is_native(folder: Path) -> bool:
    """Return whether a folder holds heads in the native format."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def check_config(folder: Path) -> None:
    """Raises ValueError where a model's folder has a configuration that is no JSON object."""
    if (folder / CONFIG).is_file():
        read_json(folder / CONFIG, Schema)


def resolved(name: str | Path) -> str:
    """Return the absolute path of a folder, or the hub id as it is.

    Raises:
        FileNotFoundError: the name can only be a folder's, and there is none.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder.absolute())
    if folder.is_file() or is_path(str(name)):
        raise FileNotFoundError(
            f"no folder {name}: give a folder that is there, or a hub id (owner/name)"
        )
    return str(name)


def find_heads(name: str | Path, **hub: Any) -> Path | None:
    """Return the local folder of the heads that `name` holds, downloaded if need be; None where it
    holds a model alone.

    Args:
        name: folder or hub id.
        hub: revision, token, ... of the hub.

    Raises:
        FileNotFoundError: `name` can only be a folder, and there is none.
        OSError: neither is there such a hub id, or it cannot be reached.
        ValueError: it holds neither heads nor a model, or heads in a format that is not read.
    """
    place = resolved(name)
    if not Path(place).is_dir():
        return _hub_heads(place, **hub)
    folder = Path(name).expanduser()
    if is_native(folder):
        return folder
    if (folder / ORIGINAL).is_file():
        raise ValueError(_original(str(name)))
    _refuse_heads_inside(str(name), Checkpoint.find(place))
    check_config(folder)
    if (folder / CONFIG).is_file() or (folder / adapters.CONFIG).is_file():
        return None
    raise ValueError(f"{name} holds neither Medusa heads nor a model: it has no {CONFIG}")


def _hub_heads(name: str, **hub: Any) -> Path | None:
    """As `find_heads`, of a hub id; where the hub cannot be reached, what is in the cache
    counts.
    """
    cached = cache_arguments(hub)
    try:
        hf_hub_download(name, WEIGHTS, **hub)
    except LocalEntryNotFoundError as error:
        if located(name, ORIGINAL, **cached):
            raise ValueError(_original(name)) from None
        if not located(name, CONFIG, **cached) and not located(name, adapters.CONFIG, **cached):
            raise OSError(
                f"no folder {name}, and the hub cannot be reached: give a folder that is there, or "
                "check the connection"
            ) from error
        _refuse_heads_inside(name, Checkpoint.find(name, **cached))
        return None
    except EntryNotFoundError:
        if HfApi(token=hub.get("token")).file_exists(name, ORIGINAL, revision=hub.get("revision")):
            raise ValueError(_original(name)) from None
        _refuse_heads_inside(name, Checkpoint.find(name, **cached), _hub_tensors(name, **hub))
        return None
    patterns = [CONFIG, WEIGHTS, TREE, f"{ADAPTER}/*", f"{MERGED}/*"]
    return Path(snapshot_download(name, allow_patterns=patterns, **hub))


def _original(name: str) -> str:
    return (
        f"{name} holds Medusa heads in the authors' format ({ORIGINAL}), which is not read yet: "
        "convert them with "
        f"safetensors.torch.save_file(torch.load('{ORIGINAL}', weights_only=True), '{WEIGHTS}')"
    )


def _refuse_heads_inside(
    name: str, checkpoint: Checkpoint | None, tensors: Iterable[str] = ()
) -> None:
    """Raises ValueError where a model's weights have Medusa heads among them."""
    names = tensors if checkpoint is None else checkpoint.places
    inside = next((each for each in names if re.search(r"(^|\.)medusa_head\.", each)), None)
    if inside is not None:
        raise ValueError(
            f"{name} is a whole model with Medusa heads inside ({inside}, ...), a format that is "
            "not read yet. For new "
            "heads on its backbone load it with AutoModelForCausalLM and pass the model to "
            "MedusaModel.from_base"
        )


def _hub_tensors(name: str, **hub: Any) -> list[str]:
    """The names of the tensors of a model on the hub, as far as they can be told without its
    weights.
    """
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
