"""The adapter that Medusa-2 trains (appendix B.2): put on the backbone, and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..formats.adapters import quiet_peft, untie
from .recipe import Recipe


def adapt(base: PreTrainedModel, recipe: Recipe) -> Any:
    """A new adapter on all linear layers and the lm_head (appendix B.2); returns peft's model
    around the base.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if recipe.bits:
        prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    untie(base)
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


def save_adapter(model: Any, learnt: dict[str, Tensor], folder: Path) -> None:
    """Write peft's folder; `learnt` are the adapter's weights by their names in the base model."""
    state = {f"base_model.model.{name}": tensor for name, tensor in learnt.items()}
    with quiet_peft():
        model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)


def _is_linear(module: nn.Module) -> bool:
    """Plain and quantised layers, and GPT-2's transposed ones."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
