"""Model names: find out whether a folder or hub id holds heads, a base model or an adapter."""

from __future__ import annotations

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
from . import adapters, stored
from .checkpoint import (
    INDEX,
    MODEL_FILES,
    PICKLED,
    SAFE,
    Checkpoint,
    cache_arguments,
    located,
    tensor_files,
)
from .gguf import SUFFIX, is_gguf
from .layouts import layout_of
from .stored import HEADS_FILES, StoredHeads

CONFIG, WEIGHTS, TREE = "config.json", stored.WEIGHTS, "medusa_tree.json"
"""File names of the native format."""
REPORT = "training.json"
"""File of a training run's recipe, last metrics and provenance, beside the heads."""
ADAPTER = "adapter"
"""Subfolder of a heads folder that holds the backbone's adapter."""
MERGED = "model"
"""Subfolder of a heads folder that holds a complete backbone, if it was trained with the heads."""
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""Options of `from_pretrained` that are passed on to the hub."""


def chosen(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the options that have one of the given names."""
    return {name: options[name] for name in names if name in options}


def is_path(name: str) -> bool:
    """Return True if a name can only be a path, never a hub id (`owner/name`)."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


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

    Heads on the hub are downloaded; of a model with heads inside, the files that hold heads.

    Args:
        name: folder or hub id, or a GGUF file, which holds no heads.
        hub: arguments of the hub, such as `revision` and `token`.

    Raises:
        FileNotFoundError: `name` can only be a folder, and the folder does not exist.
        OSError: `name` is not a folder, and the hub has no such id or cannot be reached.
        ValueError: `name` holds neither heads nor a model, or its weights cannot be read.
    """
    place = resolved(name)
    if is_gguf(place):
        return None
    if not Path(place).is_dir():
        return _hub_heads(place, **hub)
    folder = Path(name).expanduser()
    check_config(folder)
    if StoredHeads.find(folder) is not None:
        return folder
    if (folder / CONFIG).is_file() or (folder / adapters.ADAPTER_CONFIG).is_file():
        return None
    raise ValueError(f"{name} holds neither Medusa heads nor a model: it has no {CONFIG}")


def _hub_heads(name: str, **hub: Any) -> Path | None:
    """Find heads as `find_heads` does, for a hub id; use the cache if the hub is unreachable."""
    beside = [CONFIG, TREE, f"{ADAPTER}/*", f"{MERGED}/*"]
    try:
        for file in HEADS_FILES:
            if _downloaded(name, file, **hub):
                return Path(snapshot_download(name, allow_patterns=[file, *beside], **hub))
        places = _hub_tensors(name, **hub)
        layout = layout_of(places)
        if layout is None:
            return None
        holding = {places[tensor] for tensor in layout.stored_names(places).values()}
        indices = [file for file in MODEL_FILES if file.endswith(INDEX)]
        patterns = [*sorted(holding), *indices, CONFIG, TREE]
        return Path(snapshot_download(name, allow_patterns=patterns, **hub))
    except LocalEntryNotFoundError as error:
        return _cached_heads(name, error, **cache_arguments(hub))


def _downloaded(name: str, file: str, **hub: Any) -> bool:
    """Return True if a hub id has a file, which is then in the cache."""
    try:
        hf_hub_download(name, file, **hub)
    except LocalEntryNotFoundError:  # the hub cannot be reached
        raise
    except EntryNotFoundError:
        return False
    return True


def _cached_heads(name: str, error: Exception, **cached: Any) -> Path | None:
    """Find heads as `find_heads` does, for a hub id whose files are in the cache.

    Raises:
        OSError: nothing of it is in the cache; caused by `error`.
    """
    heads = StoredHeads.find(name, **cached)
    if heads is not None:
        return heads.checkpoint.file.parent
    if not any(located(name, file, **cached) for file in (CONFIG, adapters.ADAPTER_CONFIG)):
        raise OSError(
            f"no folder {name}, and the hub cannot be reached: give a folder that exists, or "
            "check the connection"
        ) from error
    return None


def _hub_tensors(name: str, **hub: Any) -> dict[str, str]:
    """Return the file of each of a hub model's tensors, without downloading weights.

    It is empty where the hub does not tell. A single pickle tells nothing; it is downloaded if the
    model's configuration speaks of Medusa.
    """
    for index in (SAFE + INDEX, PICKLED + INDEX):
        if _downloaded(name, index, **hub):
            places = tensor_files(Path(hf_hub_download(name, index, **hub)))
            return {tensor: file.name for tensor, file in places.items()}
    try:
        api = HfApi(token=hub.get("token"))
        found = api.parse_safetensors_file_metadata(name, SAFE, revision=hub.get("revision"))
        return dict.fromkeys(found.tensors, SAFE)
    except (EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled):
        pass
    speaks = _downloaded(name, CONFIG, **hub) and b"medusa" in (
        Path(hf_hub_download(name, CONFIG, **hub)).read_bytes().lower()
    )
    if not speaks or not _downloaded(name, PICKLED, **hub):
        return {}
    return dict.fromkeys(Checkpoint(Path(hf_hub_download(name, PICKLED, **hub))).places, PICKLED)
