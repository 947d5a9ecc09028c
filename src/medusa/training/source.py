"""The model and the data that a training run starts from."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..core.checks import new_heads
from ..core.heads import MedusaHeads
from ..formats import adapters, names, native
from ..formats.bases import Origin
from ..formats.gguf import files_of
from ..formats.stored import read_heads
from ..loading import NamedModel
from .recipe import Recipe


@dataclass(frozen=True)
class Source:
    """A model and the data to train it on; nothing is loaded yet.

    Attributes:
        model: folder or hub id of a base model, or of heads to train further.
        data: training data: a file, a folder, or a dataset's name.
        evaluation: evaluation data; None holds out a share of `data`.
        template: Jinja text of a chat template; None takes the tokenizer's.
        skip_bad: skip malformed records.
        limit: maximum number of records to read; None reads all.
        split: split of a dataset on the hub.
        loading: keyword arguments for transformers: revision (of `model`), token,
            trust_remote_code, ...
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
    def named(self) -> NamedModel:
        """The heads and the base model that `model` stands for.

        Raises:
            FileNotFoundError: the name is a path, and there is no such folder.
            OSError: a name is neither a folder nor a hub id, or the hub cannot be reached.
            ValueError: `model` is a PEFT adapter, or holds weights that cannot be read.
        """
        named = NamedModel.find(self.model, **self.loading)
        if named.heads is None:
            base = adapters.base_of(
                files_of(named.base.name), **names.chosen(self.loading, *names.HUB_ARGUMENTS)
            )
            if base is not None:
                raise ValueError(
                    f"{self.model} is a PEFT adapter for {base}, and heads are trained on a whole "
                    f"model: merge it first ({adapters.MERGE})"
                )
        return named

    @property
    def heads(self) -> Path | None:
        """The folder of the heads to train further; None where `model` is a base model."""
        return self.named.heads

    @property
    def origin(self) -> Origin:
        """The base model: its absolute folder, or its hub id with the revision."""
        return self.named.base

    @property
    def base(self) -> str:
        """Folder or hub id of the base model."""
        return self.origin.name

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the base model's tokenizer."""
        return self.named.tokenizer()

    def config(self) -> PreTrainedConfig:
        """Return the base model's configuration, which can be read before the weights."""
        return self.named.config()

    def stops(self) -> set[int]:
        """Return the token ids that end an answer by the base model's generation configuration."""
        return self.named.end_ids()

    def load_base(self, **options: Any) -> PreTrainedModel:
        """Return the base model, loaded with these options; see `NamedModel.load_base`."""
        return self.named.load_base(**options)


def load_backbone(source: Source, recipe: Recipe) -> PreTrainedModel:
    """Load the base model in the number format that the recipe needs, with frozen weights.

    That is 4 or 8 bits by the recipe's `bits`; float32 where all of its weights will be trained;
    otherwise that of the checkpoint, but no float16 where an adapter will be trained.

    Raises:
        ImportError: `bits` is set, and bitsandbytes is not installed.
    """
    options: dict[str, Any] = {"dtype": "auto"}
    if recipe.bits:
        options["quantization_config"] = _quantisation(recipe)
        if torch.cuda.is_available() and "device_map" not in source.loading:
            options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    if recipe.backbone_learns and not recipe.adapts:
        options["dtype"] = torch.float32  # 16 bits lose the small updates of fine-tuning
    base = source.load_base(**options)
    if recipe.backbone_learns and not recipe.bits and base.dtype == torch.float16:
        # Gradients overflow float16.
        base = base.to(torch.bfloat16 if recipe.bf16 else torch.float32)
    base.requires_grad_(False)
    return base


def _quantisation(recipe: Recipe) -> Any:
    """Return transformers' configuration for weights in the recipe's `bits`."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ImportError(
            "bits: 4 and bits: 8 need bitsandbytes: pip install bitsandbytes"
        ) from None
    from transformers import BitsAndBytesConfig

    if recipe.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    compute_dtype = torch.bfloat16 if recipe.bf16 else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def load_heads(source: Source, recipe: Recipe, base: PreTrainedModel) -> MedusaHeads:
    """Return the heads to train: those of the source, or new ones on a base model.

    Raises:
        ValueError: the source's heads have another shape than the recipe names, or an adapter.
    """
    if source.heads is None:
        return new_heads(base, recipe.num_heads, recipe.num_layers, recipe.own_lm_head, bias=True)
    if native.adapter(source.heads) is not None:
        raise ValueError(
            f"{source.model} has an adapter; training goes on from merged models: medusa train ... "
            "--merge"
        )
    heads = read_heads(source.heads, base)
    defaults = Recipe()
    for name in ("num_heads", "num_layers", "own_lm_head"):
        wanted, actual = getattr(recipe, name), getattr(heads.config, name)
        if wanted not in (actual, getattr(defaults, name)):  # defaults are not errors
            raise ValueError(
                f"{name} is {wanted}, but the heads in {source.model} have {actual}: leave it out"
            )
    return heads
