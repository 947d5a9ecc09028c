"""Heads in a folder, in any format: found by the names of their tensors, and read one by one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..core.checks import check_base, check_heads, output_shape
from ..core.heads import TOKEN_MAP, LogitRule, MedusaConfig, MedusaHeads
from .checkpoint import MODEL_FILES, Checkpoint, Entry
from .layouts import NATIVE, Layout, Part, layout_of

WEIGHTS = "medusa_lm_head.safetensors"
"""File name of heads in the native format."""
PICKLED_HEADS = "medusa_lm_head.pt"
"""File name of the pickled heads that the original authors' code writes."""
HEADS_FILES = (WEIGHTS, PICKLED_HEADS)
SHOWN = 5
"""Number of tensors that an error message lists."""


@dataclass(frozen=True)
class StoredHeads:
    """The heads in a folder or in the hub's cache. Nothing but names is read until it is asked for.

    Attributes:
        checkpoint: the weights that hold the heads.
        layout: the format.
        names: the stored name of each of the heads' tensors, by its name in the native format.
        has_base: the checkpoint holds the base model too.
    """

    checkpoint: Checkpoint
    layout: Layout
    names: Mapping[str, str]
    has_base: bool

    @classmethod
    def find(cls, place: str | Path, **hub: Any) -> StoredHeads | None:
        """Return the heads in a folder or hub id; None if it has none on this machine.

        Args:
            place: folder or hub id.
            hub: `revision` and `cache_dir` of the hub id.

        Raises:
            ValueError: the weights cannot be read, or hold tensors beside heads that do not belong
                to them. The message names the file and the tensors.
        """
        checkpoint = Checkpoint.find(place, (*HEADS_FILES, *MODEL_FILES), **hub)
        if checkpoint is None:
            return None
        stored = checkpoint.places
        layout = layout_of(stored)
        if layout is None and checkpoint.file.name not in HEADS_FILES:
            return None
        surplus, others = (list(stored), []) if layout is None else layout.others(stored)
        if layout is None or surplus:
            named = f"tensors that are not Medusa heads': {', '.join(surplus[:SHOWN])}"
            raise ValueError(f"{checkpoint.file}: it holds {named if surplus else 'no tensors'}")
        return cls(checkpoint, layout, layout.stored_names(stored), bool(others))

    @classmethod
    def of(cls, folder: Path) -> StoredHeads:
        """Return the heads in a folder that is known to hold some.

        Raises:
            ValueError: it holds none, or see `find`.
        """
        stored = cls.find(folder)
        if stored is None:
            raise ValueError(
                f"{folder} holds no Medusa heads: no file of weights has tensors of heads"
            )
        return stored

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The roles of the heads' tensors, by native name."""
        found = {name: NATIVE.part(name) for name in self.names}
        return {name: part for name, part in found.items() if part is not None}

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """The shapes and dtypes of the heads' tensors, by native name."""
        return {name: self.checkpoint.entry(stored) for name, stored in self.names.items()}

    @property
    def kind(self) -> str:
        """The format in words."""
        content = "a whole model with heads inside" if self.has_base else "heads alone"
        return f"{self.layout.title} format, {content}"

    @property
    def num_heads(self) -> int:
        """The number of heads. It is counted, as some released `config.json` files are wrong."""
        return len({part.head for part in self.parts.values()})

    @property
    def num_layers(self) -> int:
        """The number of residual layers of each head."""
        return len({part.layer for part in self.parts.values() if part.kind == "weight"})

    @property
    def layers_stored_once(self) -> bool:
        """True if the file holds only the first layer of heads whose layers are all the same."""
        return len(set(self.names.values())) < len(self.names)

    def config(self, vocab_size: int, hidden_size: int) -> MedusaConfig:
        """Return the configuration of the heads, by the shapes of their tensors.

        No values are read, so that wrong files are refused before their tensors take memory.
        `check` finds out whether the tensors are complete.

        Args:
            vocab_size: V of the base model, for heads that share its lm_head.
            hidden_size: H of the base model, for heads without a matrix.

        Raises:
            ValueError: a tensor is no matrix, or has a wrong dtype. Names it as the file does.
        """
        shapes = {name: entry.shape for name, entry in self.entries.items()}
        self._check_kinds()
        kinds = {part.kind for part in self.parts.values()}
        projection, block = (
            next((shapes[name] for name, part in self.parts.items() if part.kind == kind), None)
            for kind in ("lm_head", "weight")
        )
        matrix = block or projection
        return MedusaConfig(
            num_heads=self.num_heads,
            num_layers=self.num_layers,
            hidden_size=matrix[1] if matrix else hidden_size,
            vocab_size=projection[0] if projection else vocab_size,
            own_lm_head="lm_head" in kinds,
            bias="bias" in kinds,
            draft_vocab_size=shapes[TOKEN_MAP][0] if shapes.get(TOKEN_MAP) else None,
        )

    def _check_kinds(self) -> None:
        """Raise ValueError if a tensor is no matrix, or has no fitting dtype."""
        for native, entry in self.entries.items():
            name, part = self.names[native], self.parts.get(native)
            kind = str(entry.dtype).removeprefix("torch.")
            if part is not None and part.kind != "bias" and len(entry.shape) != 2:
                raise ValueError(f"{name} has shape {list(entry.shape)}, and a matrix is needed")
            if part is None and entry.dtype != torch.int64:
                raise ValueError(f"{name} holds {kind}, and ids are int64")
            if part is not None and not entry.dtype.is_floating_point:
                raise ValueError(f"{name} holds {kind}, and weights are floating-point numbers")

    def check(self, config: MedusaConfig) -> None:
        """Check that the tensors are those of heads with this configuration.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape. Names it as the file
                does.
        """
        shapes = {name: entry.shape for name, entry in self.entries.items()}
        config.check(shapes, self.layout.own_name)

    def tensors(self, first: int | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield the native names and the tensors of the first `first` heads; None is all heads."""
        for native in self.names:
            part = self.parts.get(native)
            if first is None or part is None or part.head < first:
                yield native, self.tensor(native)

    def tensor(self, native: str) -> Tensor:
        """Return the tensor of a native name.

        Raises:
            ValueError: the file that an index lists does not hold it.
        """
        name = self.names[native]
        tensor = self.checkpoint.read(name)
        if tensor is None:
            raise ValueError(f"{self.checkpoint.places[name]} lacks {name}")
        return tensor

    def equals(self, other: StoredHeads) -> bool:
        """Return True if two folders hold the same heads, in whatever formats."""
        if self.names.keys() != other.names.keys():
            return False
        pairs = zip(self.tensors(), map(other.tensor, self.names), strict=True)
        return all(torch.equal(tensor, theirs) for (_, tensor), theirs in pairs)

    @contextmanager
    def naming_file(self) -> Iterator[None]:
        """Begin the message of a ValueError with the file's name."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.checkpoint.file}: {error}") from None


def checked_config(stored: StoredHeads, base: PreTrainedModel) -> MedusaConfig:
    """Return the configuration of stored heads, which fit the base model.

    Args:
        stored: the heads.
        base: the base model; its weights may be on the meta device.

    Raises:
        ValueError: the heads do not fit; names the file, and the tensor or the size.
    """
    with stored.naming_file():
        config = stored.config(*output_shape(base))
        check_heads(base, config)
        stored.check(config)
    return config


def read_heads(folder: Path, base: PreTrainedModel, first: int | None = None) -> MedusaHeads:
    """Load the heads of a folder, on the device and in the dtype of the base's lm_head.

    Args:
        folder: a folder with heads in any format.
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
    stored = StoredHeads.of(folder)
    config = checked_config(stored, base)
    config = replace(config, num_heads=min(first or config.num_heads, config.num_heads))
    with stored.naming_file():
        _check_shared(stored, lm_head.weight)
        tensors = dict(_finite(stored, config.num_heads, dtype))
    if stored.layers_stored_once:
        warnings.warn(
            f"{stored.checkpoint.file} stores one layer of each head: the {config.num_layers} "
            "layers are read as copies of it, as the authors' code ties them",
            stacklevel=2,
        )
    bias = getattr(lm_head, "bias", None)
    rule = LogitRule.of(base.config.get_text_config())
    heads = MedusaHeads(config, rule, None if bias is None else bias.detach().clone())
    heads.load_tensors(tensors)
    device = lm_head.weight.device
    if device.type == "meta":  # an offloaded lm_head; accelerate's hook knows where it runs
        device = torch.device(lm_head._hf_hook.execution_device)
    return heads.to(dtype=dtype, device=device)


def _finite(stored: StoredHeads, heads: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the first heads; raise ValueError if one is not finite in `dtype`."""
    for native, tensor in stored.tensors(heads):
        if native != TOKEN_MAP and not tensor.to(dtype).isfinite().all():
            kind = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"{stored.names[native]} holds NaN or infinite values in {kind}: save or train the "
                "heads again"
            )
        yield native, tensor


def _check_shared(stored: StoredHeads, lm_head: Tensor) -> None:
    """Raise ValueError if the heads come with an lm_head that is not the base model's.

    It may be a cast of it, or its rows for the draft vocabulary. An lm_head that is quantised or
    offloaded cannot be compared.
    """
    name = stored.layout.copy_of_lm_head(stored.checkpoint.places)
    if name is None or lm_head.is_meta or not lm_head.is_floating_point():
        return
    copy = stored.checkpoint.read(name)
    if copy is None:
        return
    if TOKEN_MAP in stored.names and len(copy) == stored.entries[TOKEN_MAP].shape[0]:
        lm_head = lm_head[stored.tensor(TOKEN_MAP)]
    same = copy.shape == lm_head.shape and (
        torch.equal(copy.to(lm_head), lm_head) or torch.equal(copy, lm_head.to(copy))
    )
    if not same:
        raise ValueError(
            f"{name} is not the base model's lm_head: the heads were made for another base model; "
            "name it (base=..., --base)"
        )
