"""Conversion of heads in any format to a native folder, without the weights of their base model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..core.heads import MedusaConfig
from ..files import check_writable
from ..formats import names, native
from ..formats.stored import WEIGHTS, StoredHeads, checked_config
from .named import NamedModel


@dataclass(frozen=True)
class Converted:
    """Outcome of a conversion: the format it read and the files it wrote.

    Attributes:
        kind: the format of the heads that were read, in words.
        config: configuration of the heads.
        base: name of the base model, as the written folder has it.
        files: the files that were written, and folders of files.
        compared: the sizes were compared with the base model's; False where it is not at hand.
    """

    kind: str
    config: MedusaConfig
    base: str
    files: tuple[str, ...]
    compared: bool


def convert(named: NamedModel, destination: Path) -> Converted:
    """Write heads as a native folder, with their tree and adapter if they have any.

    Values and dtypes stay as they are. The base model is named, not copied.

    Args:
        named: heads and their base model.
        destination: a new or empty folder, or one that holds these heads already; its tree stays.

    Raises:
        ValueError: there are no heads, they do not fit the base model, or `destination` holds
            something else.
        OSError: `destination` cannot be written, or the base model of heads that share its lm_head
            cannot be read.
    """
    if named.heads is None:
        raise ValueError(f"{named.name} holds no Medusa heads: there is nothing to convert")
    stored = StoredHeads.of(named.heads)
    _check_destination(destination, stored)
    config, compared = _config(stored, named)
    with native.saving(destination, config.num_heads) as new:
        base = named.base.seen_from(destination)
        adapter = native.adapter(named.heads)
        if adapter is not None:
            shutil.copytree(adapter, new / names.ADAPTER)
        # copies, since tied layers of a pickle share memory, which safetensors refuses
        tensors = {native_name: tensor.clone() for native_name, tensor in stored.tensors()}
        native.write_tensors(new, config, tensors, base, named.base.revision)
        found = native.read_tree(named.heads)
        if found is not None and not (destination / names.TREE).exists():
            found[0].check_heads(config.num_heads, config.vocab_size)
            shutil.copyfile(named.heads / names.TREE, new / names.TREE)
        files = tuple(sorted(each.name for each in new.iterdir()))
    return Converted(stored.kind, config, base, files, compared)


def _check_destination(folder: Path, heads: StoredHeads) -> None:
    """Raise an error if `folder` cannot be written, or holds anything but these heads."""
    check_writable(folder, folder=True)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    there = StoredHeads.find(folder)
    same = there is not None and there.checkpoint.file.name == WEIGHTS and there.equals(heads)
    if not same:
        raise ValueError(
            f"{folder} is not empty, and does not hold these heads: name a new folder, so that "
            "nothing is replaced"
        )


def _config(stored: StoredHeads, named: NamedModel) -> tuple[MedusaConfig, bool]:
    """Return the heads' configuration, and whether it was compared with the base model.

    Raises:
        ValueError: a tensor is wrong, or the heads do not fit the base model.
        OSError: the base model cannot be read, and the heads share its lm_head.
    """
    try:
        base = _without_weights(named)
    except OSError as error:
        if all(part.kind != "lm_head" for part in stored.parts.values()):
            raise OSError(
                f"heads that share the lm_head of {named.base.name} need its sizes, and it cannot "
                f"be read: name a folder that holds it (--base). {error}"
            ) from error
        with stored.naming_file():
            config = stored.config(vocab_size=1, hidden_size=1)  # its own lm_heads tell both
            stored.check(config)
        return config, False
    return checked_config(stored, base), True


def _without_weights(named: NamedModel) -> PreTrainedModel:
    """Return the base model with all weights on the meta device, which takes no memory.

    Raises:
        OSError: its configuration cannot be read.
    """
    code = names.chosen(named.options, "trust_remote_code")
    with torch.device("meta"):
        base: PreTrainedModel = AutoModelForCausalLM.from_config(named.config(), **code)
    return base
