"""The native folder format of heads, which other inference engines read as well.

- `config.json` and `medusa_lm_head.safetensors`: the heads-only format of the original authors'
  code, with its tensor names.
- `medusa_tree.json`: the candidate tree and its calibration, an addition of this library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import field_validator
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..core.checks import check_base, check_heads
from ..core.heads import TOKEN_MAP, LogitRule, MedusaConfig, MedusaHeads
from ..core.schedule import UNCALIBRATED, Calibration
from ..core.tree import CandidateTree
from ..files import Schema, read_json, replacing_all, write_json
from . import adapters, tree_file
from .bases import Origin
from .checkpoint import opened
from .gguf import is_gguf
from .names import ADAPTER, CONFIG, MERGED, TREE, WEIGHTS, is_path

VERSIONS = ("1", "2")
"""Versions of the heads-only format: 1 has an lm_head for each head, 2 uses the base model's."""
TENSOR_NAME = re.compile(
    r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(linear\.weight|linear\.bias|weight)"
)


class HeadsFile(Schema):
    """The fields of the heads' `config.json` that this library reads.

    The sizes of the heads come from the tensors, because `config.json` is wrong in some released
    checkpoints.
    """

    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    medusa_num_heads: Any = None
    version: Any = None
    adapter: str | None = None
    adapter_digest: str | None = None

    @field_validator("version")
    @classmethod
    def _check_version(cls, version: Any) -> Any:
        if version is not None and (isinstance(version, bool) or str(version) not in VERSIONS):
            raise ValueError(f"{version!r} is unknown; this release reads {' and '.join(VERSIONS)}")
        return version

    @field_validator("adapter")
    @classmethod
    def _check_adapter(cls, adapter: str | None) -> str | None:
        if adapter is not None and (
            not adapter or Path(adapter).is_absolute() or ".." in Path(adapter).parts
        ):
            raise ValueError(f"{adapter!r} is not a folder within the heads' folder")
        return adapter


def named_base(folder: Path) -> Origin:
    """Return the base model that the heads name; a relative path starts at their folder.

    Raises:
        FileNotFoundError: the base model is a local folder that does not exist.
        ValueError: the folder is not in the native format, or does not name a base model.
    """
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is not a folder of Medusa heads: it has no {' and no '.join(missing)}"
        )
    config = read_json(folder / CONFIG, HeadsFile)
    name = config.base_model_name_or_path
    if not name or name == "N/A":
        raise ValueError(
            f"{folder / CONFIG} does not name its base model: pass it (from_pretrained(..., "
            "base=...), or --base)"
        )
    place = folder / Path(name).expanduser()
    if place.is_dir() or is_gguf(place):
        return Origin(str(place))
    if is_path(name) or name == MERGED:
        raise FileNotFoundError(
            f"the heads in {folder} are for the base model in {place.resolve()}, which is not "
            "there: put it back, or name it (base=..., --base)"
        )
    return Origin(name, config.base_model_revision)


def adapter(folder: Path) -> Path | None:
    """Return the folder of the adapter that was trained with the heads; None if there is none.

    Raises:
        ValueError: the adapter is missing or broken, or its digest is not the stored one.
    """
    config = read_json(folder / CONFIG, HeadsFile)
    if config.adapter is None:
        return None
    place = folder / config.adapter
    adapters.check(place)
    if adapters.digest(place) != config.adapter_digest:
        raise ValueError(
            f"{place} holds another adapter than the one these heads were trained with"
        )
    return place


def read_heads(folder: Path, base: PreTrainedModel, first: int | None = None) -> MedusaHeads:
    """Load the heads of a native folder, on the device and in the dtype of the base's lm_head.

    The numbers of heads and layers are derived from the tensors, because `config.json` is wrong
    in some released checkpoints.

    Args:
        folder: a native folder.
        base: the base model.
        first: load only the first `first` heads; None loads all.

    Raises:
        ValueError: the file is broken, or its tensors do not fit the base model. The message names
            the tensor or the size.
    """
    check_base(base)
    lm_head = base.get_output_embeddings()
    is_quantised = not lm_head.weight.is_floating_point()
    dtype = base.dtype if is_quantised else lm_head.weight.dtype
    with opened(folder / WEIGHTS) as file:
        try:
            config = _config(file, base)
            num_heads = min(first or config.num_heads, config.num_heads)
            tensors = {
                name: _tensor(file, name, dtype)
                for name in file.keys()  # noqa: SIM118
                if name == TOKEN_MAP or int(name.split(".")[0]) < num_heads
            }
        except ValueError as error:
            raise ValueError(f"{folder / WEIGHTS}: {error}") from None
    bias = getattr(lm_head, "bias", None)
    rule = LogitRule.of(base.config.get_text_config())
    config = replace(config, num_heads=num_heads)
    heads = MedusaHeads(config, rule, None if bias is None else bias.detach().clone())
    heads.load_tensors(tensors)
    device = lm_head.weight.device
    if device.type == "meta":  # an offloaded lm_head; accelerate's hook knows where it runs
        device = torch.device(lm_head._hf_hook.execution_device)
    return heads.to(dtype=dtype, device=device)


def _tensor(file: Any, name: str, dtype: torch.dtype) -> Tensor:
    """Return one tensor of an open file; raise ValueError if it is not finite in `dtype`."""
    tensor: Tensor = file.get_tensor(name)
    if name == TOKEN_MAP:
        return tensor
    if not tensor.to(dtype).isfinite().all():
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{name} holds NaN or infinite values in {kind}: save or train the heads again"
        )
    return tensor


def _config(file: Any, base: PreTrainedModel) -> MedusaConfig:
    """Return the configuration of the heads in an open file.

    Only names, shapes and dtypes are read, so that a wrong file is refused before its tensors take
    memory.
    """
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    shapes = {name: tuple(entry.get_shape()) for name, entry in slices.items()}
    config = _config_of_shapes(shapes, base)
    for name, entry in slices.items():
        kind = entry.get_dtype()
        if name == TOKEN_MAP and kind != "I64":
            raise ValueError(f"{name} holds {kind}, and ids are I64")
        if name != TOKEN_MAP and not re.match(r"B?F\d", kind):
            raise ValueError(f"{name} holds {kind}, and weights are floating-point numbers")
    check_heads(base, config)
    config.check(shapes)
    return config


def _config_of_shapes(shapes: Mapping[str, tuple[int, ...]], base: PreTrainedModel) -> MedusaConfig:
    """Return the configuration of heads with tensors of these names and shapes.

    `MedusaConfig.check` has to find out afterwards whether the set of tensors is complete.
    """
    matches = {name: TENSOR_NAME.fullmatch(name) for name in shapes if name != TOKEN_MAP}
    unknown = [name for name, match in matches.items() if match is None]
    if unknown or not matches:
        raise ValueError(
            "it holds tensors that are not Medusa heads': "
            f"{', '.join(unknown[:5]) or '(no tensors)'}"
        )
    parts = [(name, match[1], match[2], match[3]) for name, match in matches.items() if match]
    vocab_size, hidden_size = base.get_output_embeddings().weight.shape
    projections = [shapes[name] for name, _, _, kind in parts if kind == "weight"]
    blocks = [shapes[name] for name, _, _, kind in parts if kind == "linear.weight"]
    no_matrix = [
        name for name, _, _, kind in parts if kind != "linear.bias" and len(shapes[name]) != 2
    ]
    if no_matrix:
        name = no_matrix[0]
        raise ValueError(f"{name} has shape {list(shapes[name])}, and a matrix is needed")
    return MedusaConfig(
        num_heads=len({head for _, head, _, _ in parts}),
        num_layers=len({layer for _, _, layer, kind in parts if kind == "linear.weight"}),
        hidden_size=(blocks or projections)[0][1] if blocks or projections else hidden_size,
        vocab_size=projections[0][0] if projections else vocab_size,
        own_lm_head=bool(projections),
        bias=any(kind == "linear.bias" for _, _, _, kind in parts),
        draft_vocab_size=shapes[TOKEN_MAP][0] if shapes.get(TOKEN_MAP) else None,
    )


def _check_overwrite(folder: Path, heads: MedusaHeads) -> None:
    """Raise ValueError if saving would replace a model's configuration or remove stored heads."""
    if not (folder / WEIGHTS).is_file():
        if (folder / CONFIG).is_file() and read_json(
            folder / CONFIG, HeadsFile
        ).medusa_num_heads is None:
            raise ValueError(
                f"{folder} holds a model, whose {CONFIG} heads would replace: save in another "
                "folder"
            )
        return
    with opened(folder / WEIGHTS) as file:
        stored = len({name.split(".")[0] for name in file.keys()} - {TOKEN_MAP})  # noqa: SIM118
    if stored > heads.config.num_heads:
        raise ValueError(
            f"{folder} holds {stored} heads and would be left with {heads.config.num_heads}: load "
            "them all with from_pretrained(..., all_heads=True), or save in another folder"
        )


@contextmanager
def saving(folder: Path, heads: MedusaHeads, last: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder for `write_heads`; its content moves into `folder` at the end.

    If the block raises an error, `folder` is unchanged.

    Args:
        folder: the destination.
        heads: the heads that will be written.
        last: names of files that move after the heads, such as a marker of a complete save.

    Raises:
        ValueError: `folder` holds a model, or more heads than `heads` has.
    """
    _check_overwrite(folder, heads)
    with replacing_all(folder, (CONFIG, *last)) as new:
        yield new


def write_heads(
    folder: Path,
    heads: MedusaHeads,
    tree: CandidateTree,
    base: str,
    calibration: Calibration = UNCALIBRATED,
    revision: str | None = None,
) -> None:
    """Write heads and tree in the native format.

    An adapter that is already in `folder / "adapter"` is recorded as the heads' adapter.

    Args:
        folder: an empty folder, from `saving`.
        heads: the heads.
        tree: the candidate tree.
        base: name of the base model to store (see `Origin.seen_from`).
        calibration: calibration of the tree.
        revision: revision of the base model on the hub.

    Raises:
        ValueError: the heads contain NaN or infinite values.
    """
    tensors = heads.tensors()
    broken = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise ValueError(
            f"the heads are broken ({broken} holds NaN or infinite values), and are not saved"
        )
    write_json(folder / CONFIG, _config_json(folder, heads, base, revision), indent=2)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    write_tree(folder, tree, calibration)


def _config_json(
    folder: Path, heads: MedusaHeads, base: str, revision: str | None
) -> dict[str, Any]:
    """Return the content of the heads' `config.json`."""
    config = heads.config
    content: dict[str, Any] = {"model_type": "medusa", "base_model_name_or_path": base}
    if revision is not None:
        content["base_model_revision"] = revision
    content |= {
        "medusa_num_heads": config.num_heads,
        "medusa_num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "medusa_fc_bias": config.bias and config.num_layers > 0,
    }
    if not config.own_lm_head:
        content["version"] = "2"
    if config.draft_vocab_size is not None:
        content["truncated_vocab_size"] = config.draft_vocab_size
    if (folder / ADAPTER).is_dir():
        content |= {"adapter": ADAPTER, "adapter_digest": adapters.digest(folder / ADAPTER)}
    return content


def read_tree(folder: Path) -> tuple[CandidateTree, Calibration] | None:
    """Return the tree and the calibration of a native folder; None if it has no tree file."""
    return tree_file.read_tree(folder / TREE) if (folder / TREE).is_file() else None


def write_tree(folder: Path, tree: CandidateTree, calibration: Calibration = UNCALIBRATED) -> None:
    """Write the tree file of a native folder."""
    tree_file.write_tree(folder / TREE, tree, calibration)
