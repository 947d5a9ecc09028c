"""Checks of the arguments of `TreeModel`: base model, heads and switches."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from ..runtime.packing import stored_parameters
from .heads import LogitRule, MedusaConfig, MedusaHeads

Prepack = Literal["half", "int4"] | bool | None
TREE_ATTENTION = ("eager", "sdpa", "flex_attention")
"""Attention implementations that take a mask of any shape, which a tree needs."""
ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
CACHE_ARGUMENTS = ("cache", "past_key_values")
"""Names under which models take their cache: since transformers 5.24, and before."""


def check_base(base: PreTrainedModel) -> None:
    """Check that a base model can verify a tree.

    Raises:
        ValueError: it cannot; the message names the remedy.
    """
    config = base.config.get_text_config()
    name = f"{type(base).__name__} ({config.model_type})"
    layers = set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS
    if config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder model; Medusa needs a decoder-only one")
    if layers or getattr(base, "_is_stateful", False):
        raise ValueError(
            f"{name} has layers that keep a running state "
            f"({', '.join(sorted(layers)) or 'state-space'}), which cannot verify several "
            "continuations at once; use a model whose layers are all attention"
        )
    if "local" in (getattr(config, "attention_layers", None) or ()):
        raise ValueError(
            f"{name} has local attention by column, which cannot follow a tree; use another model"
        )
    if (
        getattr(config, "alibi", False)
        or not takes(base, "position_ids")
        or cache_argument(base) is None
    ):
        raise ValueError(
            f"{name} takes no explicit position ids (ALiBi or an older design), so nodes of a tree "
            "cannot be told where they stand; use a model with rotary or learnt positions"
        )
    if base.get_output_embeddings() is None:
        raise ValueError(f"{name} has no lm_head; load it with AutoModelForCausalLM")
    if config._attn_implementation not in TREE_ATTENTION:
        raise ValueError(
            f"{name} runs {config._attn_implementation}, which takes no tree mask; load it with "
            "attn_implementation='sdpa' or call base.set_attn_implementation('sdpa')"
        )


def check_heads(base: PreTrainedModel, heads: MedusaConfig) -> None:
    """Check that the heads have the base model's sizes.

    Raises:
        ValueError: hidden size or vocabulary size differ.
    """
    vocab_size, hidden_size = output_shape(base)
    for field, mine, theirs in (
        ("hidden_size", heads.hidden_size, hidden_size),
        ("vocab_size", heads.vocab_size, vocab_size),
    ):
        if mine != theirs:
            raise ValueError(
                f"the heads' {field} is {mine} but "
                f"{base.config.name_or_path or type(base).__name__} has {theirs}: "
                "they were made for another base model, or its embeddings were resized since"
            )


def check_switches(prepack: Prepack, capture: bool | None, compiled: bool) -> None:
    """Check the values of `TreeModel`'s switches.

    Raises:
        ValueError: a switch has no such value.
    """
    switches: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "prepack": (prepack, (None, True, False, "half", "int4")),
        "capture": (capture, (None, True, False)),
        "compiled": (compiled, (True, False)),
    }
    for name, (value, values) in switches.items():
        if value not in values:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, values))}, got {value!r}")


def running_device(base: PreTrainedModel) -> torch.device:
    """Return the device that token ids go to.

    Offloaded weights are on no device (`meta`); they run on the device of the others.
    """
    places = (
        each.device for module in base.modules() for each in stored_parameters(module).values()
    )
    return next((place for place in places if place.type != "meta"), torch.device("cpu"))


def capturable(base: PreTrainedModel) -> bool:
    """Return True if steps of this model can be captured as a CUDA graph.

    The whole model must be on one GPU, without hooks that move its weights. Mixture-of-experts
    models cannot be captured: transformers reads from the GPU which experts a token needs.
    """
    config = base.config.get_text_config()
    devices = {
        each.device for module in base.modules() for each in stored_parameters(module).values()
    }
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    moved = any(hasattr(module, "_hf_hook") for module in base.modules())
    on_gpu = len(devices) == 1 and devices.pop().type == "cuda"
    return on_gpu and not moved and not experts and config._attn_implementation != "flex_attention"


def output_shape(base: PreTrainedModel) -> tuple[int, int]:
    """Return V and H of the lm_head without reading its weight, which may be packed."""
    lm_head = base.get_output_embeddings()
    if isinstance(lm_head, nn.Linear):
        return lm_head.out_features, lm_head.in_features
    vocab_size, hidden_size = lm_head.weight.shape
    return vocab_size, hidden_size


def vocabulary_of_inputs(base: PreTrainedModel) -> int:
    """Return the number of token ids that a model can read."""
    embeddings = base.get_input_embeddings()
    # an adapter's layer has the weight of the layer it adapts, and not its other attributes
    return getattr(embeddings, "num_embeddings", None) or len(embeddings.weight)


def takes(base: PreTrainedModel, argument: str) -> bool:
    """Return True if the model's forward has an argument of this name."""
    return argument in inspect.signature(base.forward).parameters


def cache_argument(base: PreTrainedModel) -> str | None:
    """Return the name under which the model's forward takes its cache; None if it takes none."""
    return next((name for name in CACHE_ARGUMENTS if takes(base, name)), None)


def new_heads(
    base: PreTrainedModel, num_heads: int, num_layers: int, own_lm_head: bool, bias: bool
) -> MedusaHeads:
    """Return untrained heads; each predicts what the base itself predicts (section 2.1.1)."""
    check_base(base)
    lm_head = base.get_output_embeddings()
    vocab_size, hidden_size = lm_head.weight.shape
    config = MedusaConfig(num_heads, num_layers, hidden_size, vocab_size, own_lm_head, bias)
    return MedusaHeads.from_lm_head(lm_head, config, LogitRule.of(base.config.get_text_config()))
