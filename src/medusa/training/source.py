"""Sources of a training run: the data, and a base model or heads to continue from."""

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

from ..core.heads import MedusaHeads
from ..core.model import new_heads
from ..formats import adapters, bases, names
from ..formats import native as storage
from ..formats.bases import Origin
from .recipe import Recipe


@dataclass(frozen=True)
class Source:
    """Names of the model and the data that a training run starts from.

    Attributes:
        model: folder or hub id of a base model, or of heads to continue from.
        data: training data: path of a file or a folder, or id of a dataset on the hub.
        evaluation: evaluation data, named likewise; by default a share of `data` is held out.
        template: a chat template to use instead of the tokenizer's.
        skip_bad: skip malformed records instead of stopping at the first.
        limit: maximum number of training records read.
        split: split of hub datasets.
        loading: arguments for transformers (revision of `model`, token, trust_remote_code, ...).
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
        """Folder of the heads to continue from; None if `model` is a base model.

        Raises:
            FileNotFoundError: `model` is a path, and there is no such folder.
            OSError: there is no such hub id either, or the hub cannot be reached.
        """
        return names.find_heads(self.model, **names.chosen(self.loading, *names.HUB_ARGUMENTS))

    @cached_property
    def origin(self) -> Origin:
        """The base model: its absolute folder, or its hub id and revision.

        Raises:
            FileNotFoundError: the name is a path, and there is no such folder.
            OSError: there is no such hub id either, or the hub cannot be reached.
            ValueError: `model` is a PEFT adapter, or holds heads in an unsupported format.
        """
        if self.heads is not None:
            return storage.named_base(self.heads)
        name = names.resolved(self.model)
        of = adapters.base_of(name, **names.chosen(self.loading, *names.HUB_ARGUMENTS))
        if of is not None:
            raise ValueError(
                f"{self.model} is a PEFT adapter for {of}, and heads are trained on a whole model: "
                f"merge it first ({adapters.MERGE})"
            )
        return Origin(name, self.loading.get("revision"))

    @property
    def base(self) -> str:
        """Folder or hub id of the base model; raises the errors of `origin`."""
        return self.origin.name

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the base model's tokenizer."""
        return bases.load_tokenizer(self.base, **self._named)

    def config(self) -> PreTrainedConfig:
        """Load the base model's configuration, without its weights."""
        config: PreTrainedConfig = AutoConfig.from_pretrained(self.base, **self._named)
        return config

    def stops(self) -> set[int]:
        """Return the EOS token ids of the base model's generation configuration."""
        try:
            config = GenerationConfig.from_pretrained(
                self.base, **names.chosen(self._of_base, *names.HUB_ARGUMENTS)
            )
        except OSError:  # the model has no generation_config.json
            config = GenerationConfig.from_model_config(self.config())
        ends = config.eos_token_id
        return set() if ends is None else set(ends if isinstance(ends, list) else [ends])

    def load_base(self, **options: Any) -> PreTrainedModel:
        """Load the base model with `options` of transformers; raises the errors of `bases.load`."""
        return bases.load(self.base, **{**self._of_base, **options})

    @property
    def _of_base(self) -> dict[str, Any]:
        """`loading` with the base model's revision; the given one can be the heads' revision."""
        others = {name: value for name, value in self.loading.items() if name != "revision"}
        return {
            **others,
            **({} if self.origin.revision is None else {"revision": self.origin.revision}),
        }

    @property
    def _named(self) -> dict[str, Any]:
        """Arguments for loading the configuration and the tokenizer."""
        return names.chosen(self._of_base, *names.HUB_ARGUMENTS, "trust_remote_code")


def load_backbone(source: Source, recipe: Recipe) -> PreTrainedModel:
    """Load the base model in the recipe's precision, frozen.

    It is quantised if the recipe says so. A backbone whose own weights are trained is loaded in
    float32. One with an adapter keeps its precision, but float16 becomes bfloat16 or float32.

    Raises:
        ImportError: the recipe quantises the backbone, and bitsandbytes is not installed.
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
        # Gradients overflow in float16.
        base = base.to(torch.bfloat16 if recipe.bf16 else torch.float32)
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
    """Load the heads to continue from, or create new heads.

    Raises:
        ValueError: the heads have another shape than the recipe sets, or an adapter of their own.
    """
    if source.heads is None:
        return new_heads(base, recipe.num_heads, recipe.num_layers, recipe.own_lm_head, bias=True)
    if storage.adapter(source.heads) is not None:
        raise ValueError(
            f"{source.model} has an adapter; training goes on from merged models: medusa train ... "
            "--merge"
        )
    heads = storage.read_heads(source.heads, base)
    defaults = Recipe()
    for name in ("num_heads", "num_layers", "own_lm_head"):
        wanted, existing = getattr(recipe, name), getattr(heads.config, name)
        # A value that is the default was probably not set by the user.
        if wanted not in (existing, getattr(defaults, name)):
            raise ValueError(
                f"{name} is {wanted}, but the heads in {source.model} have {existing}: leave it out"
            )
    return heads
