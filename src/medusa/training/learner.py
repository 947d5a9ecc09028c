"""`Learner`: what a run trains, and which part of it learns in which stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from .lora import adapt
from .recipe import Recipe, Stage
from .source import Source, load_backbone, load_heads
from .student import Student


@dataclass(frozen=True)
class Learner:
    """A student, and how its backbone may change.

    Attributes:
        student: backbone and heads.
        adapter: peft's model around the backbone; None where it learns whole, or not at all.
        changing: names of the backbone's parameters that learn where it does.
    """

    student: Student
    adapter: Any
    changing: frozenset[str]

    @classmethod
    def of(cls, source: Source, recipe: Recipe) -> Learner:
        """As the recipe wants it; see `load_backbone` and `load_heads` for what is raised."""
        base = load_backbone(source, recipe)
        heads = load_heads(source, recipe, base)
        adapter = adapt(base, recipe) if recipe.adapts else None
        if recipe.gradient_checkpointing:
            _checkpoint(base)
        changing = {
            name
            for name, each in base.named_parameters()
            if (each.requires_grad if recipe.adapts else each.is_floating_point())
        }
        return cls(Student(base, heads, recipe.decay), adapter, frozenset(changing))

    def choose(self, stage: Stage, recipe: Recipe) -> None:
        """Say by `requires_grad` what learns in a stage; what learns is kept in float32."""
        learns = stage != "heads"
        for name, parameter in self.student.base.named_parameters():
            parameter.requires_grad_(learns and name in self.changing)
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        self.student.heads.float().requires_grad_(stage != "backbone")
        self.student.heads_learn = stage != "backbone"
        self.student.distilled = learns and recipe.distill


def _checkpoint(base: PreTrainedModel) -> None:
    """Have the backbone's activations computed again instead of kept."""
    enable = (
        getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    )
    enable()
    base.enable_input_require_grads()
