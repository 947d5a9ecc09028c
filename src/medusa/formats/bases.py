"""Base models: loaded by name, and named again by their heads, where they still are what the name
says.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.core_model_loading import revert_weight_conversion

from . import adapters
from .checkpoint import Checkpoint, cache_arguments, check_files, located
from .names import CONFIG, HUB_ARGUMENTS, check_config, chosen, is_path, resolved

NUMBERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Number formats whose values are compared; others are a quantisation's."""
UNHEARD = frozenset(
    """dtype torch_dtype quantization_config use_cache return_dict architectures
    transformers_version tie_word_embeddings model_type""".split()
)
"""Fields of a configuration that do not change what a model computes; so are token ids, dropout and
outputs.
"""
REMEDY = "save the base model with base.save_pretrained(folder) and name that folder: base=..."


@dataclass(frozen=True)
class Origin:
    """The origin of a base model, which its heads name.

    Attributes:
        name: the absolute path of a folder, a hub id, or "" where the model was not loaded.
        revision: of the hub id; None is its main branch.
        cache: of the hub, where it is not the usual one (`cache_dir`).
    """

    name: str
    revision: str | None = None
    cache: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, base: PreTrainedModel, asked: str | None = None, **hub: Any) -> Origin:
        """Return where a base model comes from. A folder's path is seen from the current working
        directory.

        Args:
            asked: the name that it was loaded by, where that is known; the hub's arguments belong
                to it.
        """
        name = base.config.name_or_path or ""
        folder = Path(name).expanduser()
        if name and folder.is_dir():
            return cls(str(folder.absolute()))
        known = cache_arguments(hub)
        return cls(name, known.pop("revision", None) if name == asked else None, known)

    @property
    def is_hub_id(self) -> bool:
        return bool(self.name) and not Path(self.name).is_absolute()

    def seen_from(self, folder: Path) -> str:
        """Return what heads in `folder`, which exists, write: a folder's relative path, "./" or
        "../" first, or the id.

        Raises:
            FileNotFoundError: the model's folder is not there any more.
        """
        if self.is_hub_id or not self.name:
            if is_path(self.name):
                raise FileNotFoundError(
                    f"no folder {self.name} seen from {Path.cwd()}: name the base model, base=..."
                )
            return self.name or "N/A"
        if not Path(self.name).is_dir():
            raise FileNotFoundError(
                f"the base model's folder {self.name} is not there any more: name it, base=..."
            )
        path = os.path.relpath(os.path.abspath(self.name), os.path.abspath(folder))
        if not os.path.exists(folder / path) or not os.path.samefile(
            folder / path, self.name
        ):  # links on the way
            path = os.path.relpath(os.path.realpath(self.name), os.path.realpath(folder))
        path = Path(path).as_posix()
        return path if path.startswith("..") else f"./{path}"


def load(name: str | Path, **options: Any) -> PreTrainedModel:
    """Return the causal language model that a folder or hub id holds, by transformers' `options`.

    Raises:
        FileNotFoundError: the name can only be a folder's, and there is none.
        ImportError: it holds an adapter, and peft is not installed.
        ValueError: the configuration or a weights file is broken; names it.
    """
    place = resolved(name)
    if Path(place).is_dir():
        check_config(Path(place))
    if not located(place, CONFIG) and located(place, adapters.CONFIG):
        adapters.require_peft()
    try:
        base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(place, **options)
    except SafetensorError as error:
        for each in (CONFIG, adapters.CONFIG):
            file = located(place, each, **cache_arguments(options))
            if file is not None:
                check_files(file.parent)
        raise ValueError(f"the weights of {name} cannot be read: {error}") from error
    return base.eval()


def load_tokenizer(name: str, **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model; of an adapter its own where it has one, else its base
    model's.

    Args:
        options: of transformers; the revision is that of `name`.

    Raises:
        OSError: there is no such model, or it has no tokenizer.
        ValueError: a file of the tokenizer is broken.
    """
    of = adapters.base_of(name, **chosen(options, *HUB_ARGUMENTS))
    if of is not None and not located(name, "tokenizer_config.json", **cache_arguments(options)):
        name, options = of, {each: value for each, value in options.items() if each != "revision"}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ImportError):
        raise
    except Exception as error:  # tokenizers raises its own kinds, and plain ones
        raise ValueError(f"the tokenizer in {name} cannot be read: {error}") from error
    return tokenizer


# --- whether a base model is what its name says


def check_unchanged(base: PreTrainedModel, origin: Origin) -> None:
    """Compare a base model, its adapters left out, with the files that it came from. A cast is no
    change.

    Warns where something cannot be compared: the files are not on this machine, weights are
        quantised or offloaded.

    Raises:
        ValueError: configuration or weights differ, so that its name would stand for another model.
    """
    if not origin.name:
        return
    at = {**origin.cache, **({} if origin.revision is None else {"revision": origin.revision})}
    checkpoint = Checkpoint.find(origin.name, **at)
    if checkpoint is None and Path(origin.name).is_dir():
        raise ValueError(f"{origin.name} holds no weights to name as the base model: {REMEDY}")
    if checkpoint is None:
        _unsure(
            f"the files of {origin.name} are not on this machine, so the base model was not "
            "compared with them"
        )
        return
    changed = _other_fields(base, located(origin.name, CONFIG, **at)) or _other_tensor(
        base, checkpoint, origin.name
    )
    if changed:
        raise ValueError(
            f"the base model is not {origin.name} any more ({changed}), and heads that name it "
            "would be for another "
            f"model: {REMEDY}. To name {origin.name} all the same, pass it as base=..."
        )


def _unsure(what: str) -> None:
    warnings.warn(f"{what}; if it was changed, name another: base=...", stacklevel=5)


def _other_fields(base: PreTrainedModel, file: Path | None) -> str:
    """The fields of the configuration that differ from the file's, in words."""
    if file is None:
        return ""
    there = type(base.config).from_pretrained(file.parent).get_text_config().to_dict()
    mine = base.config.get_text_config().to_dict()
    other = [
        name for name in mine if _is_heard(name) and name in there and mine[name] != there[name]
    ]
    return f"another {', '.join(other)}" if other else ""


def _is_heard(name: str) -> bool:
    quiet = name in UNHEARD or name.startswith(("_", "output_")) or name.endswith("_token_id")
    return not quiet and "drop" not in name and "label" not in name


def _other_tensor(base: PreTrainedModel, checkpoint: Checkpoint, name: str) -> str:
    """The first weight that differs from the checkpoint's, or is left out, in words."""
    tensors = dict(adapters.plain_tensors(base))
    unseen = []
    for plain, mine in tensors.items():
        same = _is_same(base, plain, mine.detach(), checkpoint) if _is_comparable(mine) else None
        if same is False:
            return f"other weights in {plain}"
        if same is None and isinstance(mine, nn.Parameter):
            unseen.append(plain)
    left_out = _layer_left_out(base, tensors, checkpoint)
    if left_out:
        return f"without {left_out}"
    if unseen:
        _unsure(
            f"{len(unseen)} weights of the base model, such as {unseen[0]}, could not be compared "
            f"with {name}'s"
        )
    return ""


def _is_comparable(tensor: Tensor) -> bool:
    """Return whether a tensor is neither offloaded nor quantised."""
    return not tensor.is_meta and tensor.dtype in NUMBERS and type(tensor.data) is Tensor


def _is_same(base: PreTrainedModel, name: str, mine: Tensor, checkpoint: Checkpoint) -> bool | None:
    """Return whether a tensor is the checkpoint's; None where the checkpoint does not tell."""
    for plain, tensor in _as_stored(base, name, mine, checkpoint):
        there = checkpoint.read(plain)
        if there is None or there.dtype not in NUMBERS:
            return None
        if not _equal(tensor, there):
            return False
    return True


def _as_stored(
    base: PreTrainedModel, name: str, tensor: Tensor, checkpoint: Checkpoint
) -> Iterator[tuple[str, Tensor]]:
    """A tensor under the name that the checkpoint has it by, or the tensors that transformers made
    it of.
    """
    for stored in (name, name.removeprefix(f"{base.base_model_prefix}.")):
        if stored in checkpoint.places:
            yield stored, tensor
            return
    try:
        converted = revert_weight_conversion(base, {name: tensor})
    except Exception:  # a conversion that needs other tensors, too, raises what it likes
        converted = {name: tensor}
    tied = getattr(base, "_tied_weights_keys", None)
    if (
        isinstance(tied, Mapping)
        and name in tied
        and not converted.keys() <= checkpoint.places.keys()
    ):
        converted = {tied[name]: tensor}  # the two are stored once
    yield from converted.items()


def _equal(mine: Tensor, there: Tensor) -> bool:
    """Return whether a tensor is the stored one, or a cast of it, by way of 16 bits perhaps."""
    if mine.shape != there.shape:
        return False
    there = there.to(mine.device)
    return any(
        torch.equal(there.to(by).to(mine.dtype), mine)
        for by in (mine.dtype, torch.bfloat16, torch.float16)
    )


def _layer_left_out(
    base: PreTrainedModel, tensors: Mapping[str, Tensor], checkpoint: Checkpoint
) -> str | None:
    """The name of a stored tensor of one of the layers whose like the model has in another layer,
    but not in this one.

    Layers past the last one are for other uses, and transformers leaves them out, too.
    """
    prefix = f"{base.base_model_prefix}."
    names = {*tensors, *(name.removeprefix(prefix) for name in tensors)}
    likes = {_without_numbers(name) for name in names}
    layers = base.config.get_text_config().num_hidden_layers
    return next(
        (
            name
            for name in checkpoint.places
            if name not in names
            and _without_numbers(name) in likes
            and next(int(part) for part in name.split(".") if part.isdecimal()) < layers
        ),
        None,
    )


def _without_numbers(name: str) -> str:
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def fingerprint(base: PreTrainedModel) -> dict[str, tuple[torch.dtype, int]]:
    """Return a checksum of each of a base model's weights, so that a later change can be told."""
    return {
        name: (tensor.dtype, _checksum(tensor.detach()))
        for name, tensor in adapters.plain_tensors(base)
        if _is_comparable(tensor)
    }


def _checksum(tensor: Tensor) -> int:
    bits = tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1).contiguous()
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]
    return zlib.crc32(bits.view(whole).sum(-1, dtype=torch.int64).cpu().numpy().tobytes())


def check_same(base: PreTrainedModel, before: Mapping[str, tuple[torch.dtype, int]]) -> None:
    """Compare a base model with its fingerprint; warns where it was cast since.

    Raises:
        ValueError: a weight was changed, added or removed.
    """
    now = fingerprint(base)
    cast = [name for name in before if name in now and now[name][0] != before[name][0]]
    changed = [
        name for name in {**before, **now} if name not in cast and now.get(name) != before.get(name)
    ]
    if changed:
        raise ValueError(
            f"the base model was changed since it was loaded (other weights in {changed[0]}): "
            f"{REMEDY}"
        )
    if cast:
        _unsure(
            "the base model was cast since its adapter was merged, so its weights were not compared"
        )
