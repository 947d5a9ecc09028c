"""Base models: load them by name, and check that a loaded model still equals its saved files.

Heads store the name of their base model. That name is only correct while the model in memory has
the configuration and the weights of the files behind the name.
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
from .gguf import files_of, is_gguf
from .names import CONFIG, HUB_ARGUMENTS, check_config, chosen, is_path, resolved
from .reports import heads_expected

COMPARABLE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes whose values are compared. Tensors of other dtypes belong to quantised weights."""
IGNORED_FIELDS = frozenset(
    """dtype torch_dtype quantization_config use_cache return_dict architectures
    transformers_version tie_word_embeddings model_type""".split()
)
"""Configuration fields that do not change what a model computes.

`_is_relevant_field` also ignores token ids, dropout rates and fields about outputs.
"""
REMEDY = "save the base model with base.save_pretrained(folder) and name that folder: base=..."


@dataclass(frozen=True)
class Origin:
    """The origin of a base model: the folder or hub id that heads store as its name.

    Attributes:
        name: absolute path of a folder or a GGUF file, a hub id, or "" if the model was not loaded
            from anywhere.
        revision: revision of the hub id; None means the main branch.
        cache: {"cache_dir": ...} if the hub's files are not in the default cache; otherwise empty.
    """

    name: str
    revision: str | None = None
    cache: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, base: PreTrainedModel, requested: str | None = None, **hub: Any) -> Origin:
        """Return the origin of a loaded base model.

        A relative path in the model's configuration is resolved from the working directory.

        Args:
            base: the model.
            requested: the name that the model was loaded by, if known. `hub` belongs to that name.
            hub: arguments of the hub that the model was loaded with.
        """
        name = base.config.name_or_path or ""
        folder = Path(name).expanduser()
        if name and (folder.is_dir() or is_gguf(folder)):
            return cls(str(folder.absolute()))
        cache = cache_arguments(hub)
        revision = cache.pop("revision", None)
        return cls(name, revision if name == requested else None, cache)

    @property
    def is_hub_id(self) -> bool:
        """Return True if the name is a hub id."""
        return bool(self.name) and not Path(self.name).is_absolute()

    def seen_from(self, folder: Path) -> str:
        """Return the base model's name as heads saved in `folder` store it.

        The name is a hub id, or a path relative to `folder` that begins with "./" or "../". It is
        "N/A", as in the original checkpoints, if the model has no name.

        Args:
            folder: the existing folder of the heads.

        Raises:
            FileNotFoundError: the model's folder no longer exists.
        """
        if self.is_hub_id or not self.name:
            if is_path(self.name):
                raise FileNotFoundError(
                    f"no folder {self.name} seen from {Path.cwd()}: name the base model, base=..."
                )
            return self.name or "N/A"
        if not Path(self.name).exists():
            raise FileNotFoundError(
                f"the base model {self.name} is not there any more: name it, base=..."
            )
        path = os.path.relpath(os.path.abspath(self.name), os.path.abspath(folder))
        if not os.path.exists(folder / path) or not os.path.samefile(folder / path, self.name):
            # A symbolic link within one of the paths makes ".." lead elsewhere.
            path = os.path.relpath(os.path.realpath(self.name), os.path.realpath(folder))
        path = Path(path).as_posix()
        return path if path.startswith("..") else f"./{path}"


def load(name: str | Path, **options: Any) -> PreTrainedModel:
    """Load the causal language model of a folder, hub id or GGUF file, in evaluation mode.

    Args:
        name: of a model, or of an adapter (with its base model).
        options: arguments of transformers' `from_pretrained`.

    Raises:
        FileNotFoundError: the name can only be a folder, and the folder does not exist.
        ImportError: the name is an adapter's, and peft is not installed.
        ValueError: the configuration or a weights file is broken. The message names it.
    """
    place = files_of(resolved(name))
    if Path(place).is_dir():
        check_config(Path(place))
    if not located(place, CONFIG) and located(place, adapters.ADAPTER_CONFIG):
        adapters.require_peft()
    # without these transformers asks the hub for an adapter, even with local_files_only
    hub = chosen(options, "cache_dir", "local_files_only")
    options["adapter_kwargs"] = {**hub, **options.get("adapter_kwargs", {})}
    try:
        with heads_expected():
            base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(place, **options)
    except SafetensorError as error:
        for config in (CONFIG, adapters.ADAPTER_CONFIG):
            file = located(place, config, **cache_arguments(options))
            if file is not None:
                check_files(file.parent)
        raise ValueError(f"the weights of {name} cannot be read: {error}") from error
    if is_gguf(name):
        base.config.name_or_path = resolved(name)
    return base.eval()


def load_tokenizer(name: str, **options: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model or an adapter.

    An adapter without a tokenizer of its own uses its base model's.

    Args:
        name: folder, hub id or GGUF file.
        options: arguments of transformers' `from_pretrained`; `revision` belongs to `name`.

    Raises:
        OSError: the model does not exist, or it has no tokenizer.
        ValueError: a file of the tokenizer is broken.
    """
    name = files_of(name)
    base = adapters.base_of(name, **chosen(options, *HUB_ARGUMENTS))
    if base is not None and not located(name, "tokenizer_config.json", **cache_arguments(options)):
        name = base
        options = {option: value for option, value in options.items() if option != "revision"}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ImportError):
        raise
    except Exception as error:  # the tokenizers library raises many types, even plain Exception
        raise ValueError(f"the tokenizer in {name} cannot be read: {error}") from error
    return tokenizer


# --- comparing a base model with its files


def check_unchanged(base: PreTrainedModel, origin: Origin) -> None:
    """Compare a base model, without its adapters, with the files that it was loaded from.

    A model that was only cast to another dtype counts as unchanged. If something cannot be
    compared, because the files are not on this machine or the weights are quantised or offloaded,
    the function warns.

    Raises:
        ValueError: configuration or weights differ, so the origin's name would mean another model.
    """
    if not origin.name:
        return
    hub = {**origin.cache, **({} if origin.revision is None else {"revision": origin.revision})}
    files = files_of(origin.name)
    checkpoint = Checkpoint.find(files, **hub)
    if checkpoint is None and Path(origin.name).is_dir():
        raise ValueError(f"{origin.name} holds no weights to name as the base model: {REMEDY}")
    if checkpoint is None:
        _warn_not_compared(
            f"the files of {origin.name} are not on this machine, so the base model was not "
            "compared with them"
        )
        return
    change = _changed_fields(base, located(files, CONFIG, **hub)) or _changed_tensor(
        base, checkpoint, origin.name
    )
    if change:
        raise ValueError(
            f"the base model is not {origin.name} any more ({change}), and heads that name it "
            f"would be for another model: {REMEDY}. To name {origin.name} all the same, pass it as "
            "base=..."
        )


def _warn_not_compared(reason: str) -> None:
    warnings.warn(f"{reason}; if it was changed, name another: base=...", stacklevel=5)


def _changed_fields(base: PreTrainedModel, file: Path | None) -> str:
    """Describe the configuration fields that differ from the file's; "" if none does."""
    if file is None:
        return ""
    saved = type(base.config).from_pretrained(file.parent).get_text_config().to_dict()
    current = base.config.get_text_config().to_dict()
    changed = [
        name
        for name, value in current.items()
        if _is_relevant_field(name) and name in saved and value != saved[name]
    ]
    return f"another {', '.join(changed)}" if changed else ""


def _is_relevant_field(name: str) -> bool:
    ignored = (
        name in IGNORED_FIELDS or name.startswith(("_", "output_")) or name.endswith("_token_id")
    )
    return not ignored and "drop" not in name and "label" not in name


def _changed_tensor(base: PreTrainedModel, checkpoint: Checkpoint, name: str) -> str:
    """Describe the first weight that differs from the checkpoint's or is missing; "" if none."""
    tensors = dict(adapters.plain_tensors(base))
    not_compared = []
    for tensor_name, tensor in tensors.items():
        same = (
            _is_same(base, tensor_name, tensor.detach(), checkpoint)
            if _is_comparable(tensor)
            else None
        )
        if same is False:
            return f"other weights in {tensor_name}"
        if same is None and isinstance(tensor, nn.Parameter):
            not_compared.append(tensor_name)
    removed = _removed_layer(base, tensors, checkpoint)
    if removed:
        return f"without {removed}"
    if not_compared:
        _warn_not_compared(
            f"{len(not_compared)} weights of the base model, such as {not_compared[0]}, could not "
            f"be compared with {name}'s"
        )
    return ""


def _is_comparable(tensor: Tensor) -> bool:
    """Return True if a tensor is neither offloaded nor quantised."""
    return not tensor.is_meta and tensor.dtype in COMPARABLE_DTYPES and type(tensor.data) is Tensor


def _is_same(
    base: PreTrainedModel, name: str, tensor: Tensor, checkpoint: Checkpoint
) -> bool | None:
    """Return True if a tensor equals the checkpoint's; None if the checkpoint cannot tell."""
    for stored_name, converted in _as_stored(base, name, tensor, checkpoint):
        stored = checkpoint.read(stored_name)
        if stored is None or stored.dtype not in COMPARABLE_DTYPES:
            return None
        if not _equal(converted, stored):
            return False
    return True


def _as_stored(
    base: PreTrainedModel, name: str, tensor: Tensor, checkpoint: Checkpoint
) -> Iterator[tuple[str, Tensor]]:
    """Yield the checkpoint's names and tensors for one tensor of the model.

    The checkpoint may store the tensor with or without the model's prefix, or as several tensors
    that transformers combines when it loads them (experts, say).
    """
    for stored in (name, name.removeprefix(f"{base.base_model_prefix}.")):
        if stored in checkpoint.places:
            yield stored, tensor
            return
    try:
        converted = revert_weight_conversion(base, {name: tensor})
    except Exception:  # the conversion may need other tensors as well and then fails in any way
        converted = {name: tensor}
    tied = getattr(base, "_tied_weights_keys", None)
    if (
        isinstance(tied, Mapping)
        and name in tied
        and not converted.keys() <= checkpoint.places.keys()
    ):
        converted = {tied[name]: tensor}  # a checkpoint stores tied weights once
    yield from converted.items()


def _equal(tensor: Tensor, stored: Tensor) -> bool:
    """Return True if a tensor is the stored one, or a cast of it.

    The cast may have gone through a 16-bit dtype: a bfloat16 checkpoint loaded in float32 equals
    itself, but so does a float32 checkpoint that was cast to bfloat16 and back.
    """
    if tensor.shape != stored.shape:
        return False
    stored = stored.to(tensor.device)
    return any(
        torch.equal(stored.to(dtype).to(tensor.dtype), tensor)
        for dtype in (tensor.dtype, torch.bfloat16, torch.float16)
    )


def _removed_layer(
    base: PreTrainedModel, tensors: Mapping[str, Tensor], checkpoint: Checkpoint
) -> str | None:
    """Return the name of a stored tensor of a layer that the model lacks; None if there is none.

    Only tensors whose counterparts exist in other layers of the model count. Layers beyond the
    configured number are skipped: they have other uses (such as multi-token prediction), and
    transformers does not load them either.
    """
    prefix = f"{base.base_model_prefix}."
    names = {*tensors, *(name.removeprefix(prefix) for name in tensors)}
    patterns = {_without_numbers(name) for name in names}
    num_layers = base.config.get_text_config().num_hidden_layers
    return next(
        (
            name
            for name in checkpoint.places
            if name not in names
            and _without_numbers(name) in patterns
            and next(int(part) for part in name.split(".") if part.isdecimal()) < num_layers
        ),
        None,
    )


def _without_numbers(name: str) -> str:
    """Return a tensor's name with "*" in place of each number, such as "layers.*.weight"."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def fingerprint(base: PreTrainedModel) -> dict[str, tuple[torch.dtype, int]]:
    """Return the dtype and a checksum of each weight of a base model, to detect later changes."""
    return {
        name: (tensor.dtype, _checksum(tensor.detach()))
        for name, tensor in adapters.plain_tensors(base)
        if _is_comparable(tensor)
    }


def _checksum(tensor: Tensor) -> int:
    """Return the CRC-32 of the row sums of a tensor's bits, read as integers."""
    rows = tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1).contiguous()
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]
    # Sums are computed on the tensor's own device, so only one number a row is copied to the CPU.
    return zlib.crc32(rows.view(integers).sum(-1, dtype=torch.int64).cpu().numpy().tobytes())


def check_same(base: PreTrainedModel, before: Mapping[str, tuple[torch.dtype, int]]) -> None:
    """Compare a base model with an earlier `fingerprint`; warn if the model was cast since.

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
        _warn_not_compared(
            "the base model was cast since its adapter was merged, so its weights were not compared"
        )
