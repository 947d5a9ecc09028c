"""Names of the heads' tensors in each format: a row of a table for each format."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from ..core.heads import TOKEN_MAP

Kind = Literal["weight", "bias", "lm_head"]
NUMBER = "(?:0|[1-9][0-9]{0,8})"
MOST_TIED = 16
"""Most layers that are taken for copies of one that is stored; a broken name may say any number."""


@dataclass(frozen=True)
class Part:
    """The role of one tensor: the weight or bias of a residual layer, or a head's lm_head.

    Attributes:
        layer: number of the layer; of an lm_head, the number of layers before it, and None in
            formats whose names do not tell it.
    """

    kind: Kind
    head: int
    layer: int | None


@dataclass(frozen=True)
class Layout:
    """A format: the names of its tensors, with `{head}` and `{layer}` in place of numbers.

    Attributes:
        title: whose format it is.
        weight, bias: names of a residual layer's tensors.
        lm_head: name of a head's own lm_head.
        prefix: begins all names, so that the heads may lie among the tensors of their base model.
        shared: name of a copy of the base model's lm_head, which all heads then use. The lm_head of
            head 0 is such a copy as well, if the other heads have none.
    """

    title: str
    weight: str
    bias: str
    lm_head: str
    prefix: str = ""
    shared: str | None = None

    def part(self, name: str) -> Part | None:
        """Return the role of the tensor of this name; None if it is no tensor of a head."""
        if not name.startswith(self.prefix):
            return None
        kinds: tuple[Kind, ...] = ("weight", "bias", "lm_head")
        for kind in kinds:
            pattern = re.escape(getattr(self, kind))
            for number in ("head", "layer"):
                pattern = pattern.replace(rf"\{{{number}\}}", f"(?P<{number}>{NUMBER})")
            match = re.fullmatch(pattern, name[len(self.prefix) :])
            if match is not None:
                numbers = {key: int(value) for key, value in match.groupdict().items()}
                return Part(kind, numbers["head"], numbers.get("layer"))
        return None

    def name(self, part: Part) -> str:
        """Return the name of the tensor with this role."""
        return self.prefix + getattr(self, part.kind).format(head=part.head, layer=part.layer)

    def own_name(self, native: str) -> str:
        """Return this format's name of a tensor that the native format calls `native`."""
        part = NATIVE.part(native)
        return native if part is None else self.name(part)

    def stored_names(self, names: Collection[str]) -> dict[str, str]:
        """Return the names of the heads' tensors in a file, by their names in the native format.

        Layers that the authors' code ties (`[ResBlock] * L`) may be stored once: where a file has
        nothing but layer 0 before lm_heads at place L, all L layers have the names of layer 0.

        Args:
            names: the names of all tensors in the file.
        """
        parts = self._parts(names)
        layers = {part.layer for part in parts.values() if part.kind != "lm_head"}
        places = {part.layer for part in parts.values() if part.kind == "lm_head"}
        tied = _tied_layers(layers, places)
        found = {}
        for name, part in parts.items():
            place = len(layers) if part.layer is None else part.layer
            for layer in (place,) if part.kind == "lm_head" else (place, *tied):
                found[NATIVE.name(replace(part, layer=layer))] = name
        if TOKEN_MAP in names:
            found[TOKEN_MAP] = TOKEN_MAP
        return found

    def _parts(self, names: Collection[str]) -> dict[str, Part]:
        """Return the roles of the heads' tensors by name, without copies of the base's lm_head."""
        parts = {name: part for name in names if (part := self.part(name)) is not None}
        owners = {part.head for part in parts.values() if part.kind == "lm_head"}
        if self.shared is None or owners != {0} or all(part.head == 0 for part in parts.values()):
            return parts
        return {name: part for name, part in parts.items() if part.kind != "lm_head"}

    def copy_of_lm_head(self, names: Collection[str]) -> str | None:
        """Return the name of a copy of the base model's lm_head; None if there is none."""
        own = self.stored_names(names).values()
        first = self.name(Part("lm_head", 0, None))
        copies = [] if self.shared is None else [self.shared, first]
        return next((name for name in copies if name in names and name not in own), None)

    def others(self, names: Collection[str]) -> tuple[list[str], list[str]]:
        """Return the names that are none of the heads': surplus ones, and the base model's.

        Only a format with a prefix may hold a base model as well.
        """
        known = {TOKEN_MAP, self.shared}
        others = [name for name in names if name not in known and self.part(name) is None]
        if not self.prefix:
            return others, []
        surplus = [name for name in others if name.startswith(self.prefix)]
        return surplus, [name for name in others if name not in surplus]


def _tied_layers(layers: set[int | None], places: set[int | None]) -> range:
    """Return the layers that repeat layer 0, which is stored for all; mostly none.

    Args:
        layers: the layers that are stored.
        places: the places of the lm_heads after the layers; a format may not tell them.
    """
    depth = next(iter(places)) if layers == {0} and len(places) == 1 else None
    return range(1, depth if depth is not None and depth <= MOST_TIED else 1)


NATIVE = Layout(
    "the authors'",
    weight="{head}.{layer}.linear.weight",
    bias="{head}.{layer}.linear.bias",
    lm_head="{head}.{layer}.weight",
)
LAYOUTS = (
    NATIVE,
    replace(NATIVE, prefix="medusa_head."),
    replace(NATIVE, title="ModelOpt's", prefix="medusa_heads."),
    Layout(
        "vLLM's",
        weight="blocks.{head}.layers.{layer}.weight",
        bias="blocks.{head}.layers.{layer}.bias",
        lm_head="lm_heads.{head}.weight",
        shared="lm_head.weight",
    ),
)
"""All formats that are read."""


def layout_of(names: Collection[str]) -> Layout | None:
    """Return the format of a file with tensors of these names; None if none is a head's."""
    return next((each for each in LAYOUTS if any(map(each.part, names))), None)
