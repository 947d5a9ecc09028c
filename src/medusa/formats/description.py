"""Description of a folder of heads in words, and of its oddities; it loads no heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict

from ..core.heads import TOKEN_MAP
from ..core.schedule import UNCALIBRATED
from ..files import Schema, read_json
from . import native
from .bases import Origin
from .checkpoint import located
from .names import CONFIG
from .pickles import SUFFIXES
from .stored import StoredHeads

COUNTS = {
    "heads": ("medusa_num_heads", "num_medusa_heads", "num_heads"),
    "residual layers": ("medusa_num_layers", "num_medusa_layers"),
    "hidden size": ("hidden_size",),
    "vocabulary": ("vocab_size",),
}
"""Fields of `config.json` that state each size of the heads; the tensors decide."""


class _AnyFields(Schema):
    """Any JSON object."""

    model_config = ConfigDict(extra="allow")


@dataclass(frozen=True)
class Description:
    """The description of heads in a folder.

    Attributes:
        folder: the folder.
        stored: the heads in it.
    """

    folder: Path
    stored: StoredHeads

    @classmethod
    def of(cls, folder: Path) -> Description:
        """Return the description of a folder that holds heads.

        Raises:
            ValueError: it holds none, or its weights cannot be read.
        """
        return cls(folder, StoredHeads.of(folder))

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The heads' sizes by the names in `COUNTS`, as far as the tensors tell them."""
        stored = self.stored
        shapes = {
            part.kind: stored.entries[name].shape
            for name, part in stored.parts.items()
            if part.kind != "bias" and len(stored.entries[name].shape) == 2
        }
        sizes = {"heads": stored.num_heads, "residual layers": stored.num_layers}
        if shapes:
            sizes["hidden size"] = (shapes.get("weight") or shapes["lm_head"])[1]
        if "lm_head" in shapes:
            sizes["vocabulary"] = shapes["lm_head"][0]
        return sizes

    @property
    def dtypes(self) -> list[str]:
        """The names of the weights' dtypes."""
        kinds = {self.stored.entries[name].dtype for name in self.stored.parts}
        return sorted(str(kind).removeprefix("torch.") for kind in kinds)

    @property
    def has_bias(self) -> bool:
        """True if residual layers have biases."""
        return any(part.kind == "bias" for part in self.stored.parts.values())

    @property
    def own_lm_head(self) -> bool:
        """True if heads have lm_heads of their own."""
        return any(part.kind == "lm_head" for part in self.stored.parts.values())

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield what the folder holds, as labels and texts."""
        sizes, stored = self.sizes, self.stored
        entries = [stored.entries[name] for name in stored.parts]
        count = sum(torch.Size(entry.shape).numel() for entry in entries)
        size = sum(torch.Size(entry.shape).numel() * entry.dtype.itemsize for entry in entries)
        pickled = any(place.suffix in SUFFIXES for place in stored.checkpoint.places.values())
        yield "format", stored.kind
        yield "file", stored.checkpoint.file.name + (" (pickled)" if pickled else "")
        yield "heads", str(sizes["heads"])
        biases = f", {'with' if self.has_bias else 'without'} biases"
        yield (
            "layers",
            f"{sizes['residual layers']} in each head{biases if stored.num_layers else ''}",
        )
        yield "lm_head", "each head's own" if self.own_lm_head else "the base model's"
        yield "weights", f"{count:,} in {', '.join(self.dtypes)}, {size / 1e6:,.1f} MB"
        if TOKEN_MAP in stored.entries:
            yield "draft vocabulary", f"{stored.entries[TOKEN_MAP].shape[0]:,} tokens"
        yield "fits", f"hidden size {sizes.get('hidden size', 'unknown')}, {self._vocabulary()}"
        yield "base model", self.base()
        yield "adapter", self.config.adapter or "none"
        yield from self._tree_rows()

    def _vocabulary(self) -> str:
        """Return the vocabulary of the heads' lm_heads, or else the one that `config.json` says."""
        if "vocabulary" in self.sizes:
            return f"vocabulary {self.sizes['vocabulary']:,}"
        stated = self._stated.get("vocab_size")
        return f"vocabulary {stated:,} by {CONFIG}" if isinstance(stated, int) else "any vocabulary"

    @cached_property
    def config(self) -> native.HeadsFile:
        """The fields of `config.json` that loading reads."""
        return native.read_config(self.folder) or native.HeadsFile()

    @cached_property
    def _origin(self) -> Origin | None:
        """The base model that the heads name; None if they name none, or it is not there."""
        try:
            return native.named_base(self.folder)
        except (ValueError, FileNotFoundError):
            return None

    def base(self) -> str:
        """Return the base model's name, and where it is."""
        if self.stored.has_base:
            return "in the same files"
        if self._origin is None:
            name = self.config.base_model_name_or_path
            return "not named" if name in (None, "", "N/A") else f"{name}, which is not there"
        if not self._origin.is_hub_id:
            return str(Path(self._origin.name).resolve())
        here = located(self._origin.name, CONFIG) is not None
        return (
            f"{self._origin.name} ({'in the cache' if here else 'on the hub, not on this machine'})"
        )

    def _tree_rows(self) -> Iterator[tuple[str, str]]:
        found = native.read_tree(self.folder)
        if found is None:
            yield "tree", "none: the default tree is used"
            return
        tree, calibration = found
        yield "tree", f"{len(tree)} nodes, depth {tree.max_depth}"
        made = [
            str(calibration.made[key]) for key in ("device", "dtype") if key in calibration.made
        ]
        known = "none" if calibration is UNCALIBRATED else "accuracies alone, without times"
        yield "calibration", ", ".join(made) or known

    def odd(self) -> list[str]:
        """Return what is unusual or wrong about the folder, in sentences without a full stop."""
        return [*self._wrong_counts(), *self._wrong_fields(), *self._wrong_tensors()]

    @cached_property
    def _stated(self) -> dict[str, Any]:
        """The fields of `config.json`; ModelOpt's lie in an object of their own."""
        if not (self.folder / CONFIG).is_file():
            return {}
        fields = read_json(self.folder / CONFIG, _AnyFields).model_extra or {}
        nested = fields.get("medusa")
        return {**fields, **(nested if isinstance(nested, dict) else {})}

    def _wrong_counts(self) -> Iterator[str]:
        for size, fields in COUNTS.items():
            for field in fields:
                if self.stored.has_base and "medusa" not in field:
                    continue  # the field is the base model's
                stated, held = self._stated.get(field), self.sizes.get(size)
                if isinstance(stated, int) and held is not None and stated != held:
                    yield f"{CONFIG} says {field} = {stated}, the tensors say {held}"

    def _wrong_fields(self) -> Iterator[str]:
        if not (self.folder / CONFIG).is_file():
            yield f"there is no {CONFIG}"
        if not self.stored.has_base and self._origin is None:
            yield "no base model is found: name it with --base"
        kind = self._stated.get("model_type")
        if not self.stored.has_base and kind not in (None, "medusa"):
            yield f"model_type is {kind}, but the folder holds heads alone"
        if str(self._stated.get("version")) in ("2", "2.0") and self.own_lm_head:
            yield "version 2 means a shared lm_head, but each head has its own"
        if self._stated.get("medusa_fc_bias") is False and self.has_bias:
            yield "medusa_fc_bias is false, so vLLM would leave out the biases"

    def _wrong_tensors(self) -> Iterator[str]:
        if len(self.dtypes) > 1:
            yield f"weights have several dtypes: {', '.join(self.dtypes)}"
        if self.stored.layers_stored_once:
            yield "layers are tied: the file stores one layer of each head for all"
        elif self._layers_repeat():
            yield "layers are tied: all layers of a head have the same values"
        try:  # a vocabulary that is not known is taken to be large enough for a draft vocabulary
            config = self.stored.config(vocab_size=1 << 31, hidden_size=1)
            self.stored.check(config)
        except ValueError as error:
            yield f"the heads cannot be loaded: {error}"
            return
        found = native.read_tree(self.folder)
        if found is not None and found[0].max_depth > config.num_heads:
            yield f"the tree is {found[0].max_depth} deep, for {config.num_heads} heads"

    def _layers_repeat(self) -> bool:
        """Return True if the layers of each head, of which there are several, are equal."""
        parts = self.stored.parts
        later = [name for name, part in parts.items() if part.kind == "weight" and part.layer]
        first = {name: f"{parts[name].head}.0.linear.weight" for name in later}
        return bool(later) and all(
            original in parts
            and torch.equal(self.stored.tensor(name), self.stored.tensor(original))
            for name, original in first.items()
        )
