"""What a run starts from: a base model, or heads to go on with, and data."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..core.checks import new_heads
from ..core.heads import MedusaHeads
from ..formats import adapters, bases, names
from ..formats import native as storage
from ..formats.bases import Origin
from .recipe import Recipe


@dataclass(frozen=True)
class Source:
    """What a run starts from.

    Attributes:
        model: folder or hub id of a base model, or of heads to go on with.
        data: what to learn from: a file, a folder, a dataset's name.
        evaluation: held-out data; by default a share of `data`.
        template: a chat template in place of the tokenizer's.
        skip_bad: pass over malformed records.
        limit: read at most so many records.
        split: of a dataset on the hub.
        loading: passed to transformers (revision of `model`, token, trust_remote_code, ...).
    """

    model: str
    data: str
    evaluation: str | None = None
    template: str | None = None
    skip_bad: bool = False
    limit: int | None = None
    split: str = "train"
    loading: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def heads(self) -> Path | None:
        """The folder of the heads to go on with; None where `model` is a base model.

        Raises:
            FileNotFoundError: `model` can only be a folder, and there is none.
            OSError: neither is there such a hub id, or it cannot be reached.
        """
        return names.find_heads(self.model, **names.chosen(self.loading, *names.HUB_ARGUMENTS))

    @cached_property
    def origin(self) -> Origin:
        """The base model: its absolute folder, or its hub id with the revision.

        Raises:
            FileNotFoundError: the name can only be a folder's, and there is none.
            OSError: neither is there such a hub id, or it cannot be reached.
            ValueError: `model` is a PEFT adapter, or holds heads in a format that is not read.
        """
        if self.heads is not None:
            return storage.named_base(self.heads)
        name = names.resolved(self.model)
        of = adapters.base_of(name, **names.chosen(self.loading, *names.HUB_ARGUMENTS))
        if of is not None:
            raise ValueError(
                f"{self.model} is a PEFT adapter for {of}, and heads are trained on a whole model: "
                "merge it first "
                f"({adapters.MERGE})"
            )
        return Origin(name, self.loading.get("revision"))

    @property
    def base(self) -> str:
        """Folder or hub id of the base model; see `origin` for what it raises."""
        return self.origin.name

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's."""
        return bases.load_tokenizer(self.base, **self._named)

    def config(self) -> PreTrainedConfig:
        """The base model's; it can be read before the weights."""
        config: PreTrainedConfig = AutoConfig.from_pretrained(self.base, **self._named)
        return config

    def stops(self) -> set[int]:
        """Return the ids that end an answer by the base model's generation configuration."""
        try:
            found = GenerationConfig.from_pretrained(
                self.base, **names.chosen(self._of_base, *names.HUB_ARGUMENTS)
            )
        except OSError:  # it has none of its own
            found = GenerationConfig.from_model_config(self.config())
        ends = found.eos_token_id
        return set() if ends is None else set(ends if isinstance(ends, list) else [ends])

    def load_base(self, **options: Any) -> PreTrainedModel:
        """Return the base model, loaded by transformers' `options`; see `bases.load` for what is
        raised.
        """
        return bases.load(self.base, **{**self._of_base, **options})

    @property
    def _of_base(self) -> dict[str, Any]:
        """`loading`, with the base model's revision in place of the one of the heads."""
        others = {each: value for each, value in self.loading.items() if each != "revision"}
        return {
            **others,
            **({} if self.origin.revision is None else {"revision": self.origin.revision}),
        }

    @property
    def _named(self) -> dict[str, Any]:
        """What configuration and tokenizer take of it."""
        return names.chosen(self._of_base, *names.HUB_ARGUMENTS, "trust_remote_code")


def load_backbone(source: Source, recipe: Recipe) -> PreTrainedModel:
    """The base model as the recipe runs it, frozen: quantised, or in float32 or bfloat16 where its
    weights will learn.

    Raises:
        ImportError: bits are asked for, and bitsandbytes is not installed.
    """
    options: dict[str, Any] = {"dtype": "auto"}
    if recipe.bits:
        options["quantization_config"] = _quantisation(recipe)
        if torch.cuda.is_available() and "device_map" not in source.loading:
            options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    if recipe.backbone_learns and not recipe.adapts:
        options["dtype"] = torch.float32  # 16 bits lose the small steps of a fine-tuning
    base = source.load_base(**options)
    if recipe.backbone_learns and not recipe.bits and base.dtype == torch.float16:
        base = base.to(
            torch.bfloat16 if recipe.bf16 else torch.float32
        )  # gradients overflow float16
    base.requires_grad_(False)
    return base


def _quantisation(recipe: Recipe) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ImportError(
            "bits: 4 and bits: 8 need bitsandbytes: pip install bitsandbytes"
        ) from None
    from transformers import BitsAndBytesConfig

    if recipe.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    computes = torch.bfloat16 if recipe.bf16 else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computes,
    )


def load_heads(source: Source, recipe: Recipe, base: PreTrainedModel) -> MedusaHeads:
    """The heads to go on with, or new ones.

    Raises:
        ValueError: the heads have a shape that the recipe does not say, or a backbone of their own.
    """
    if source.heads is None:
        return new_heads(base, recipe.num_heads, recipe.num_layers, recipe.own_lm_head, bias=True)
    if storage.adapter(source.heads) is not None:
        raise ValueError(
            f"{source.model} has an adapter; training goes on from merged models: medusa train ... "
            "--merge"
        )
    found = storage.read_heads(source.heads, base)
    standard = Recipe()
    for name in ("num_heads", "num_layers", "own_lm_head"):
        asked, there = getattr(recipe, name), getattr(found.config, name)
        if asked not in (there, getattr(standard, name)):
            raise ValueError(
                f"{name} is {asked}, but the heads in {source.model} have {there}: leave it out"
            )
    return found
