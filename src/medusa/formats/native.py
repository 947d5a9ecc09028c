"""The native folder: `config.json`, `medusa_lm_head.safetensors` with the original tensor names,
`medusa_tree.json`.

The first two are the heads-only format of the authors' code, which other engines read; the tree
file is ours.
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
from ..core.heads import LogitRule, MedusaConfig, MedusaHeads
from ..core.schedule import UNCALIBRATED, Calibration
from ..core.tree import CandidateTree
from ..files import Schema, read_json, replacing_all, write_json
from . import adapters, tree_file
from .bases import Origin
from .checkpoint import opened
from .names import ADAPTER, CONFIG, MERGED, TREE, WEIGHTS, is_path

VERSIONS = ("1", "2")
"""Of the heads-only format: with own lm_heads, and with the base model's. The tensors tell them
apart, too.
"""
TENSOR = re.compile(
    r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(linear\.weight|linear\.bias|weight)"
)


class HeadsFile(Schema):
    """The fields of the heads' `config.json` that are read; sizes come from the tensors, as
    released files err.
    """

    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    medusa_num_heads: Any = None
    version: Any = None
    adapter: str | None = None
    adapter_digest: str | None = None

    @field_validator("version")
    @classmethod
    def _is_known(cls, version: Any) -> Any:
        if version is not None and (isinstance(version, bool) or str(version) not in VERSIONS):
            raise ValueError(f"{version!r} is unknown; this release reads {' and '.join(VERSIONS)}")
        return version

    @field_validator("adapter")
    @classmethod
    def _lies_within(cls, adapter: str | None) -> str | None:
        if adapter is not None and (
            not adapter or Path(adapter).is_absolute() or ".." in Path(adapter).parts
        ):
            raise ValueError(f"{adapter!r} is no folder within the heads' folder")
        return adapter


def named_base(folder: Path) -> Origin:
    """Return the base model that the heads name; a relative path is seen from their folder.

    Raises:
        ValueError: the folder is not a native one, or names no base.
        FileNotFoundError: the base is a folder, and it is not there.
    """
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is not a folder of Medusa heads: it has no {' and no '.join(missing)}"
        )
    told = read_json(folder / CONFIG, HeadsFile)
    name = told.base_model_name_or_path
    if not name or name == "N/A":
        raise ValueError(
            f"{folder / CONFIG} does not name its base model: pass it (from_pretrained(..., "
            "base=...), or --base)"
        )
    place = folder / Path(name).expanduser()
    if place.is_dir():
        return Origin(str(place))
    if is_path(name) or name == MERGED:
        raise FileNotFoundError(
            f"the heads in {folder} are for the base model in {place.resolve()}, which is not "
            "there: put it back, or "
            "name it (base=..., --base)"
        )
    return Origin(name, told.base_model_revision)


def adapter(folder: Path) -> Path | None:
    """Return the folder of the adapter that the heads' backbone was trained with; None where there
    was none.

    Raises:
        ValueError: the adapter is not there or broken, or it is another one.
    """
    told = read_json(folder / CONFIG, HeadsFile)
    if told.adapter is None:
        return None
    place = folder / told.adapter
    adapters.check(place)
    if adapters.digest(place) != told.adapter_digest:
        raise ValueError(
            f"{place} holds another adapter than the one these heads were trained with"
        )
    return place


def read_heads(folder: Path, base: PreTrainedModel, first: int | None = None) -> MedusaHeads:
    """Return the heads of a native folder, on the device and in the dtype of the base's lm_head.

    The number of heads and layers is told from the tensors, never from `config.json`, which in
    released files disagrees with them.

    Args:
        first: read only so many heads; None reads all.

    Raises:
        ValueError: the file is broken, or what it holds does not fit the base model; says exactly
            what.
    """
    check_base(base)
    lm_head = base.get_output_embeddings()
    floating = lm_head.weight.is_floating_point()
    dtype = lm_head.weight.dtype if floating else base.dtype
    with opened(folder / WEIGHTS) as file:
        try:
            config = _config(file, base)
            count = min(first or config.num_heads, config.num_heads)
            named = {
                name: _tensor(file, name, dtype)
                for name in file.keys()  # noqa: SIM118
                if int(name.split(".")[0]) < count
            }
        except ValueError as error:
            raise ValueError(f"{folder / WEIGHTS}: {error}") from None
    bias = getattr(lm_head, "bias", None)
    rule = LogitRule.of(base.config.get_text_config())
    heads = MedusaHeads(
        replace(config, num_heads=count), rule, None if bias is None else bias.detach().clone()
    )
    heads.load_tensors(named)
    device = lm_head.weight.device
    if device.type == "meta":  # offloaded: its hook knows where it runs
        device = torch.device(lm_head._hf_hook.execution_device)
    return heads.to(dtype=dtype, device=device)


def _tensor(file: Any, name: str, dtype: torch.dtype) -> Tensor:
    tensor: Tensor = file.get_tensor(name)
    if not tensor.to(dtype).isfinite().all():
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{name} holds NaN or infinite values in {kind}: save or train the heads again"
        )
    return tensor


def _config(file: Any, base: PreTrainedModel) -> MedusaConfig:
    """The shape of the heads in a file, told and checked before anything is read or built."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    whole = next(
        (name for name, each in slices.items() if not re.match(r"B?F\d", each.get_dtype())), None
    )
    shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
    config = _shape(shapes, base)
    if whole is not None:
        raise ValueError(
            f"{whole} holds {slices[whole].get_dtype()}, and weights are floating-point numbers"
        )
    check_heads(base, config)
    config.check(shapes)
    return config


def _shape(shapes: Mapping[str, tuple[int, ...]], base: PreTrainedModel) -> MedusaConfig:
    """Return the configuration of heads with tensors of these names and shapes, taken as
    complete.
    """
    keys = {name: TENSOR.fullmatch(name) for name in shapes}
    odd = [name for name, key in keys.items() if key is None]
    if odd or not keys:
        raise ValueError(
            f"it holds tensors that are not Medusa heads': {', '.join(odd[:5]) or '(no tensors)'}"
        )
    found = [(name, key[1], key[2], key[3]) for name, key in keys.items() if key]
    vocab_size, hidden_size = base.get_output_embeddings().weight.shape
    projections = [shapes[name] for name, _, _, kind in found if kind == "weight"]
    blocks = [shapes[name] for name, _, _, kind in found if kind == "linear.weight"]
    flat = [name for name, _, _, kind in found if kind != "linear.bias" and len(shapes[name]) != 2]
    if flat:
        raise ValueError(f"{flat[0]} has shape {list(shapes[flat[0]])}, and a matrix is needed")
    return MedusaConfig(
        num_heads=len({head for _, head, _, _ in found}),
        num_layers=len({layer for _, _, layer, kind in found if kind == "linear.weight"}),
        hidden_size=(blocks or projections)[0][1] if blocks or projections else hidden_size,
        vocab_size=projections[0][0] if projections else vocab_size,
        own_lm_head=bool(projections),
        bias=any(kind == "linear.bias" for _, _, _, kind in found),
    )


def _check_kept(folder: Path, heads: MedusaHeads) -> None:
    """Raises ValueError where a model's configuration would be lost, or heads that were left out on
    loading.
    """
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
        there = len({name.split(".")[0] for name in file.keys()})  # noqa: SIM118
    if there > heads.config.num_heads:
        raise ValueError(
            f"{folder} holds {there} heads and would be left with {heads.config.num_heads}: load "
            "them all with "
            "from_pretrained(..., all_heads=True), or save in another folder"
        )


@contextmanager
def saving(folder: Path, heads: MedusaHeads, last: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder for `write_heads` and what goes with them; all of it moves into
    `folder` in the end.

    A save that fails leaves `folder` as it was.

    Args:
        last: files that move after the heads.

    Raises:
        ValueError: `folder` holds a model, or more heads than these.
    """
    _check_kept(folder, heads)
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
    """Write the native folder; an adapter that lies in it already belongs to the heads.

    Args:
        folder: an empty one, of `saving`.
        base: what to name as the base model.
        revision: of the base model on the hub.

    Raises:
        ValueError: the heads hold NaN or infinite values.
    """
    broken = next(
        (name for name, tensor in heads.tensors().items() if not tensor.isfinite().all()), None
    )
    if broken is not None:
        raise ValueError(
            f"the heads are broken ({broken} holds NaN or infinite values), and are not saved"
        )
    config, lies = heads.config, (folder / ADAPTER).is_dir()
    content = {
        "model_type": "medusa",
        "base_model_name_or_path": base,
        **({} if revision is None else {"base_model_revision": revision}),
        "medusa_num_heads": config.num_heads,
        "medusa_num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "medusa_fc_bias": config.bias and config.num_layers > 0,
        **({} if config.own_lm_head else {"version": "2"}),
        **(
            {"adapter": ADAPTER, "adapter_digest": adapters.digest(folder / ADAPTER)}
            if lies
            else {}
        ),
    }
    write_json(folder / CONFIG, content, indent=2)
    save_file(
        {name: tensor.contiguous() for name, tensor in heads.tensors().items()}, folder / WEIGHTS
    )
    write_tree(folder, tree, calibration)


def read_tree(folder: Path) -> tuple[CandidateTree, Calibration] | None:
    """Return the tree of a native folder and what was measured for it; None where it has no tree
    file.
    """
    return tree_file.read_tree(folder / TREE) if (folder / TREE).is_file() else None


def write_tree(folder: Path, tree: CandidateTree, calibration: Calibration = UNCALIBRATED) -> None:
    """Write the tree file of a native folder."""
    tree_file.write_tree(folder / TREE, tree, calibration)
