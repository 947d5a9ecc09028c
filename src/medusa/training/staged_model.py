"""`StagedModel`: the model of a training run, whose trainable parameters change with the stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from .lora import add_adapter
from .recipe import Recipe, Stage
from .source import Source, load_backbone, load_heads
from .training_model import TrainingModel


@dataclass(frozen=True)
class StagedModel:
    """A training model, and which parameters of its backbone are trained in stages that train it.

    Attributes:
        model: backbone and heads.
        peft_model: peft's wrapper of the backbone; None if the recipe makes no adapter.
        trainable: names of the backbone's parameters to train: the adapter's, or all.
    """

    model: TrainingModel
    peft_model: Any
    trainable: frozenset[str]

    @classmethod
    def load(cls, source: Source, recipe: Recipe) -> StagedModel:
        """Load backbone and heads, and add an adapter if the recipe has one.

        Raises:
            ImportError: bitsandbytes is needed and missing.
            ValueError: the heads to continue from do not fit the recipe; see `load_heads`.
        """
        base = load_backbone(source, recipe)
        heads = load_heads(source, recipe, base)
        peft_model = add_adapter(base, recipe) if recipe.adapts else None
        if recipe.gradient_checkpointing:
            _enable_checkpointing(base)
        trainable = {
            name
            for name, parameter in base.named_parameters()
            if (parameter.requires_grad if recipe.adapts else parameter.is_floating_point())
        }
        model = TrainingModel(base, heads, recipe.decay, overlap=recipe.overlap)
        return cls(model, peft_model, frozenset(trainable))

    def set_stage(self, stage: Stage, recipe: Recipe) -> None:
        """Set `requires_grad` for a stage; parameters to train are converted to float32."""
        backbone_learns = stage != "heads"
        for name, parameter in self.model.base.named_parameters():
            parameter.requires_grad_(backbone_learns and name in self.trainable)
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # 16 bits would lose small updates
        self.model.heads.float().requires_grad_(stage != "backbone")
        self.model.heads_learn = stage != "backbone"
        self.model.distilled = backbone_learns and recipe.distill


def _enable_checkpointing(base: PreTrainedModel) -> None:
    """Recompute the backbone's activations in the backward pass instead of storing them."""
    enable = (
        getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    )
    enable()
    # A checkpointed layer gets gradients only if its input requires them; embeddings are frozen.
    base.enable_input_require_grads()
