"""Inflation: give a model the cost of a larger one without changing what it computes.

The MLPs get additional columns whose contribution to the output is zero. Every hidden state and
every token stays the same, while there are more weights to read and to multiply. An inflated model
stands in for a large model where none is available; figures measured on it are labelled as such.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaForCausalLM


def inflated(base: LlamaForCausalLM, intermediate_size: int) -> LlamaForCausalLM:
    """Widen the MLPs of a model to `intermediate_size` in place, and return the model.

    The new rows of gate_proj and up_proj are random; the new columns of down_proj are zero.

    Raises:
        ValueError: the model's MLPs are already wider.
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
    """Return a layer whose weight is extended along dimension `dim` to `size`.

    The new entries are small random numbers, or zeros if there is no generator.
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
