"""The native folder format of heads, which other inference engines read as well.

- `config.json` and `medusa_lm_head.safetensors`: the heads-only format of the original authors'
  code, with its tensor names.
- `medusa_tree.json`: the candidate tree and its calibration, an addition of this library.
- `custom_generate/generate.py`: code by which transformers decodes with the heads; likewise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import field_validator
from safetensors.torch import save_file
from torch import Tensor

from ..core.heads import MedusaConfig, MedusaHeads
from ..core.schedule import UNCALIBRATED, Calibration
from ..core.tree import CandidateTree
from ..files import Schema, read_json, replacing_all, write_json
from . import adapters, tree_file
from .bases import Origin
from .checkpoint import Checkpoint
from .gguf import is_gguf
from .names import ADAPTER, CONFIG, MERGED, TREE, WEIGHTS, is_path
from .stored import StoredHeads

VERSIONS = ("1", "2", "1.0", "2.0")
"""Versions of the heads-only format: 1 has an lm_head for each head, 2 uses the base model's.

Some files have no version or a wrong one, so the tensors decide.
"""


CUSTOM_GENERATE = "custom_generate/generate.py"
"""File that transformers runs for `base.generate(custom_generate=folder)`."""
CODE = '''"""Decodes with the Medusa heads beside this file, for transformers' `generate`.

    base.generate(**inputs, custom_generate="this repository", trust_remote_code=True)
"""

try:
    from medusa.loading.custom import generate
except ImportError as error:
    raise ImportError("Medusa heads need: pip install medusa-decoding") from error
'''


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
            raise ValueError(f"{version!r} is unknown; this release reads 1 and 2")
        return version

    @field_validator("adapter")
    @classmethod
    def _check_adapter(cls, adapter: str | None) -> str | None:
        if adapter is not None and (
            not adapter or Path(adapter).is_absolute() or ".." in Path(adapter).parts
        ):
            raise ValueError(f"{adapter!r} is not a folder within the heads' folder")
        return adapter


def read_config(folder: Path) -> HeadsFile | None:
    """Return the heads' `config.json`; None if the folder has none.

    Raises:
        ValueError: the file is broken. The message names the field.
    """
    return read_json(folder / CONFIG, HeadsFile) if (folder / CONFIG).is_file() else None


def named_base(folder: Path) -> Origin:
    """Return the base model that the heads name; a relative path starts at their folder.

    Raises:
        FileNotFoundError: the base model is a local folder that does not exist.
        ValueError: the folder holds no heads, or does not name a base model.
    """
    StoredHeads.of(folder)
    config = read_config(folder) or HeadsFile()
    name = config.base_model_name_or_path
    if not name or name == "N/A":
        raise ValueError(
            f"{folder / CONFIG} does not name its base model: pass it (from_pretrained(..., "
            "base=...), or --base)"
        )
    place = folder / Path(name).expanduser()
    if place.is_dir() or is_gguf(place):
        return Origin(str(place.absolute()))
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
    config = read_config(folder)
    if config is None or config.adapter is None:
        return None
    place = folder / config.adapter
    adapters.check(place)
    if adapters.digest(place) != config.adapter_digest:
        raise ValueError(
            f"{place} holds another adapter than the one these heads were trained with"
        )
    return place


def _check_overwrite(folder: Path, num_heads: int) -> None:
    """Raise ValueError if saving would replace a model, or remove stored heads."""
    stored = StoredHeads.find(folder)
    if stored is not None and stored.checkpoint.file.name == WEIGHTS:
        if stored.num_heads > num_heads:
            raise ValueError(
                f"{folder} holds {stored.num_heads} heads and would be left with {num_heads}: load "
                "them all with from_pretrained(..., all_heads=True), or save in another folder"
            )
        return
    config = read_config(folder)
    is_models = stored is None and config is not None and config.medusa_num_heads is None
    if is_models or Checkpoint.find(folder) is not None:
        raise ValueError(
            f"{folder} holds a model, whose {CONFIG} heads would replace: save in another folder"
        )
    if stored is not None:
        raise ValueError(
            f"{folder} holds heads in another format ({stored.checkpoint.file.name}): save in "
            "another folder"
        )


@contextmanager
def saving(folder: Path, num_heads: int, last: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder for `write_heads`; its content moves into `folder` at the end.

    If the block raises an error, `folder` is unchanged.

    Args:
        folder: the destination.
        num_heads: number of heads that will be written.
        last: names of files that move after the heads, such as a marker of a complete save.

    Raises:
        ValueError: `folder` holds a model, heads in another format, or more heads than
            `num_heads`.
    """
    _check_overwrite(folder, num_heads)
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
    write_tensors(folder, heads.config, heads.tensors(), base, revision)
    write_tree(folder, tree, calibration)


def write_tensors(
    folder: Path,
    config: MedusaConfig,
    tensors: Mapping[str, Tensor],
    base: str,
    revision: str | None = None,
) -> None:
    """Write heads without a tree in the native format; see `write_heads`.

    Args:
        config: configuration of the heads.
        tensors: the heads' tensors by native name.

    Raises:
        ValueError: the heads contain NaN or infinite values.
    """
    broken = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise ValueError(
            f"the heads are broken ({broken} holds NaN or infinite values), and are not saved"
        )
    write_json(folder / CONFIG, _config_json(folder, config, base, revision), indent=2)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    write_code(folder)


def write_code(folder: Path) -> None:
    """Write the file of a native folder that transformers runs for `custom_generate`."""
    (folder / CUSTOM_GENERATE).parent.mkdir(exist_ok=True)
    (folder / CUSTOM_GENERATE).write_text(CODE, encoding="utf-8")


def _config_json(
    folder: Path, config: MedusaConfig, base: str, revision: str | None
) -> dict[str, Any]:
    """Return the content of the heads' `config.json`."""
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
