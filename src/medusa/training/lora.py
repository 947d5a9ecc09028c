"""The LoRA adapter that Medusa-2 trains (appendix B.2): adding it to a backbone, and saving it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..formats.adapters import quiet_peft, untie
from .recipe import Recipe


def add_adapter(base: PreTrainedModel, recipe: Recipe) -> Any:
    """Add a new adapter to all linear layers and the lm_head of `base` (appendix B.2).

    Returns:
        peft's wrapper of `base`, which is changed in place.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if recipe.bits:
        prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    untie(base)  # an adapter on the lm_head must not change the input embeddings
    targets = sorted(name for name, module in base.named_modules() if _is_linear(module))
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with quiet_peft():
        return get_peft_model(base, config)


def save_adapter(model: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """Save an adapter in PEFT's format.

    Args:
        model: peft's wrapper of the backbone.
        weights: the adapter's weights by their names in the base model.
        folder: where to save it.
    """
    state = {f"base_model.model.{name}": tensor for name, tensor in weights.items()}
    with quiet_peft():
        model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)


def _is_linear(module: nn.Module) -> bool:
    """Return True for linear layers, quantised ones, and GPT-2's transposed `Conv1D`."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
