"""Inflation: a model that computes the same function at the cost of a larger one.

The MLPs get more columns whose share of the output is zero, so every token and every hidden state
stays what it was while the weights to read and to multiply grow. It stands in for a large model
where none can be had; figures measured on it are labelled as inflated.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaForCausalLM


def inflated(base: LlamaForCausalLM, intermediate_size: int) -> LlamaForCausalLM:
    """The model with MLPs `intermediate_size` wide, in place; new columns are random, their outputs
    zero.

    Raises:
        ValueError: the model's MLPs are wider already.
    """
    if intermediate_size < base.config.intermediate_size:
        raise ValueError(
            f"MLPs are {base.config.intermediate_size} wide, cannot inflate to {intermediate_size}"
        )
    generator = torch.Generator().manual_seed(0)
    for layer in base.model.layers:
        for name in ("gate_proj", "up_proj"):
            setattr(
                layer.mlp, name, _widened(getattr(layer.mlp, name), 0, intermediate_size, generator)
            )
        layer.mlp.down_proj = _widened(layer.mlp.down_proj, 1, intermediate_size, None)
    base.config.intermediate_size = intermediate_size
    return base


def _widened(
    linear: nn.Linear, dim: int, size: int, generator: torch.Generator | None
) -> nn.Linear:
    """The layer with its weight's dimension `dim` grown to `size`: by small random rows, or by zero
    columns.
    """
    old = linear.weight.detach()
    shape = [size if axis == dim else length for axis, length in enumerate(old.shape)]
    weight = (
        torch.zeros(shape) if generator is None else torch.randn(shape, generator=generator) * 0.02
    )
    weight = weight.to(old)
    weight.narrow(dim, 0, old.shape[dim]).copy_(old)
    wide = nn.Linear(shape[1], shape[0], bias=False, device="meta")
    wide.weight = nn.Parameter(weight)
    return wide
