"""The native folder: `config.json`, `medusa_lm_head.safetensors` with the original tensor names, `medusa_tree.json`.

The first two are the heads-only format of the authors' code, which other engines read; the tree file is ours.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from . import adapters
from .heads import LogitRule, MedusaConfig, MedusaHeads
from .model import check_base, check_heads
from .pace import UNCALIBRATED, Calibration
from .tree import CandidateTree

CONFIG, WEIGHTS, TREE = "config.json", "medusa_lm_head.safetensors", "medusa_tree.json"
ADAPTER = "adapter"
"""Where an adapter lies in the folder of its heads."""
MERGED = "model"
"""Where a backbone that was trained along with its heads lies in their folder, if it is whole."""
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def fetch(path_or_id: str | Path, **hub: Any) -> Path:
    """The local folder of a path or hub id; only the native files are downloaded."""
    if Path(path_or_id).is_dir():
        return Path(path_or_id)
    if is_path(str(path_or_id)):
        raise FileNotFoundError(f"no folder {path_or_id}")
    patterns = [CONFIG, WEIGHTS, TREE, f"{ADAPTER}/*", f"{MERGED}/*"]
    return Path(snapshot_download(str(path_or_id), allow_patterns=patterns, **hub))


def find_heads(name: str, **hub: Any) -> Path | None:
    """The local folder of the heads that `name` holds, downloaded if need be; None where it is a base model's.

    Args:
        name: folder or hub id.
        hub: revision, token, ... of the hub.

    Raises:
        FileNotFoundError: `name` can only be a folder, and there is none.
        OSError: neither is there such a hub id, or it cannot be reached.
        ValueError: the folder holds neither heads nor a model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if is_native(folder):
            return folder
        if not (folder / CONFIG).is_file():
            raise ValueError(f"{name} holds neither Medusa heads nor a model: it has no {CONFIG}")
        return None
    if folder.is_file() or is_path(name):
        raise FileNotFoundError(f"no folder {name}: give a folder that is there, or a hub id (owner/name)")
    return _hub_heads(name, **hub)


def _hub_heads(name: str, **hub: Any) -> Path | None:
    """As `find_heads`, of a hub id; where the hub cannot be reached, what is in the cache counts."""
    cached = {each: hub[each] for each in ("revision", "cache_dir") if each in hub}
    try:
        hf_hub_download(name, WEIGHTS, **hub)
    except LocalEntryNotFoundError as error:
        if isinstance(try_to_load_from_cache(name, CONFIG, **cached), str):
            return None
        raise OSError(
            f"no folder {name}, and the hub cannot be reached: give a folder that is there, or check the connection"
        ) from error
    except EntryNotFoundError:
        return None
    return fetch(name, **hub)


def is_path(name: str) -> bool:
    """Whether a name can only be a folder's, not a hub id."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


def is_native(folder: Path) -> bool:
    """Whether a folder holds heads in the native format."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def base_name(folder: Path) -> str:
    """The base model that the heads name; a folder beside them if it is a relative path.

    Raises:
        ValueError: the folder is not a native one, or names no base.
        FileNotFoundError: the base is a folder, and it is not there.
    """
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is not a folder of Medusa heads: it has no {' and no '.join(missing)}")
    name = json.loads((folder / CONFIG).read_text()).get("base_model_name_or_path")
    if not name or name == "N/A":
        raise ValueError(f"{folder / CONFIG} does not name its base model; pass it: from_pretrained(..., base=...)")
    if (folder / name).is_dir():
        return str(folder / name)
    if is_path(name) or name == MERGED:
        raise FileNotFoundError(
            f"the heads in {folder} are for the base model in {(folder / name).resolve()}, which is not there: put it "
            "back, or name it (base=..., --base)"
        )
    return str(name)


def adapter(folder: Path) -> Path | None:
    """The folder of the adapter that the heads' backbone was trained with, if it was.

    Raises:
        ValueError: there is no such folder, or another adapter lies there.
    """
    told = json.loads((folder / CONFIG).read_text())
    if "adapter" not in told:
        return None
    place = folder / told["adapter"]
    if not (place / adapters.WEIGHTS).is_file():
        raise ValueError(f"{folder} needs the backbone's adapter in {place}, and there is none: copy it there")
    if adapters.digest(place) != told["adapter_digest"]:
        raise ValueError(f"{place} holds another adapter than the one these heads were trained with")
    return place


def read_heads(folder: Path, base: PreTrainedModel, first: int | None = None) -> MedusaHeads:
    """The heads of a native folder, on the device and in the dtype of the base's lm_head.

    The number of heads and layers is told from the tensors, never from `config.json`, which in released files
    disagrees with them.

    Args:
        first: read only so many heads; None reads all.

    Raises:
        ValueError: what the file holds does not fit the base model; says exactly what.
    """
    check_base(base)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        config = _shape(shapes, base)
        check_heads(base, config)
        count = min(first or config.num_heads, config.num_heads)
        named = {name: file.get_tensor(name) for name in shapes if int(name.split(".")[0]) < count}
    lm_head = base.get_output_embeddings()
    bias = getattr(lm_head, "bias", None)
    rule = LogitRule.of(base.config.get_text_config())
    heads = MedusaHeads(replace(config, num_heads=count), rule, None if bias is None else bias.detach().clone())
    heads.load_tensors(named)
    floating = lm_head.weight.is_floating_point()
    device = lm_head.weight.device
    if device.type == "meta":  # offloaded: its hook knows where it runs
        device = torch.device(lm_head._hf_hook.execution_device)
    return heads.to(dtype=lm_head.weight.dtype if floating else base.dtype, device=device)


def _shape(shapes: dict[str, tuple[int, ...]], base: PreTrainedModel) -> MedusaConfig:
    """What heads tensors of these names and shapes are."""
    keys = [re.fullmatch(r"(\d+)\.(\d+)\.(linear\.weight|linear\.bias|weight)", name) for name in shapes]
    if not keys or None in keys:
        odd = [name for name, key in zip(shapes, keys, strict=True) if key is None] or ["(no tensors)"]
        raise ValueError(f"{WEIGHTS} holds tensors that are not Medusa heads': {', '.join(odd[:5])}")
    found = [(int(key[1]), int(key[2]), key[3]) for key in keys if key]
    vocab_size, hidden_size = base.get_output_embeddings().weight.shape
    projections = [shapes[f"{head}.{layer}.weight"] for head, layer, kind in found if kind == "weight"]
    blocks = [shapes[f"{head}.{layer}.linear.weight"] for head, layer, kind in found if kind == "linear.weight"]
    return MedusaConfig(
        num_heads=1 + max(head for head, _, _ in found),
        num_layers=max((layer + 1 for _, layer, kind in found if kind == "linear.weight"), default=0),
        hidden_size=(blocks or projections)[0][1] if blocks or projections else hidden_size,
        vocab_size=projections[0][0] if projections else vocab_size,
        own_lm_head=bool(projections),
        bias=any(kind == "linear.bias" for _, _, kind in found),
    )


def _check_kept(folder: Path, heads: MedusaHeads) -> None:
    """Raises ValueError where heads would be lost that were left out on loading."""
    if not (folder / WEIGHTS).is_file():
        return
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        there = 1 + max(int(name.split(".")[0]) for name in file.keys())  # noqa: SIM118
    if there > heads.config.num_heads:
        raise ValueError(
            f"{folder} holds {there} heads and would be left with {heads.config.num_heads}: load them all with "
            "from_pretrained(..., all_heads=True), or save in another folder"
        )


def write_heads(
    folder: Path,
    heads: MedusaHeads,
    tree: CandidateTree,
    base: str,
    calibration: Calibration = UNCALIBRATED,
    adapter: str | None = None,
) -> None:
    """Write the native folder.

    Args:
        base: what to name as the base model.
        adapter: the folder, seen from this one, of the adapter that belongs to the heads.

    Raises:
        ValueError: the folder holds more heads than these.
    """
    _check_kept(folder, heads)
    adapted = {} if adapter is None else {"adapter": adapter, "adapter_digest": adapters.digest(folder / adapter)}
    folder.mkdir(parents=True, exist_ok=True)
    config = heads.config
    (folder / CONFIG).write_text(
        json.dumps(
            {
                "model_type": "medusa",
                "base_model_name_or_path": base,
                "medusa_num_heads": config.num_heads,
                "medusa_num_layers": config.num_layers,
                "hidden_size": config.hidden_size,
                "vocab_size": config.vocab_size,
                "medusa_fc_bias": config.bias and config.num_layers > 0,
                **({} if config.own_lm_head else {"version": "2"}),
                **adapted,
            },
            indent=2,
        )
        + "\n"
    )
    save_file({name: tensor.contiguous() for name, tensor in heads.tensors().items()}, folder / WEIGHTS)
    write_tree(folder, tree, calibration)


def read_tree(folder: Path) -> tuple[CandidateTree, Calibration] | None:
    """The tree of a native folder and what was measured for it; None where it has no tree file."""
    if not (folder / TREE).is_file():
        return None
    return parse_tree(json.loads((folder / TREE).read_text()))


def parse_tree(told: dict[str, Any]) -> tuple[CandidateTree, Calibration]:
    """A tree file's content: the tree, and what was measured for it."""
    tree = CandidateTree(told["paths"])
    if "accuracies" not in told:
        return tree, UNCALIBRATED
    latency = {int(nodes): float(ms) for nodes, ms in told.get("latency", UNCALIBRATED.latency).items()}
    return tree, Calibration(told["accuracies"], latency, told.get("made", {}))


def write_tree(folder: Path, tree: CandidateTree, calibration: Calibration = UNCALIBRATED) -> None:
    """Write the tree file: its rank paths, the root implied, and what was measured for it."""
    told: dict[str, Any] = {"version": 1, "paths": [list(path) for path in tree.paths[1:]]}
    if calibration is not UNCALIBRATED:
        told["accuracies"] = [list(row) for row in calibration.accuracies]
    if calibration.made:
        told["latency"] = {str(nodes): ms for nodes, ms in calibration.latency.items()}
        told["made"] = dict(calibration.made)
    (folder / TREE).write_text(json.dumps(told) + "\n")
