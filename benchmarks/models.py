"""Models that several benchmark scripts measure."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

INFLATED_WIDTH = 21_600
"""MLP columns that inflate the embedded model to about 100 million parameters."""
EMBEDDED_MODELS: dict[str, int | None] = {"embedded": None, "inflated": INFLATED_WIDTH}
"""MLP columns of the embedded model and of its inflated version; None leaves them as they are."""


def llama_100m() -> LlamaConfig:
    """Return the shape of a Llama of 100 million parameters in a real model's proportions."""
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )


def random_llama(
    config: LlamaConfig, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> LlamaForCausalLM:
    """Return a Llama with seeded random weights, created on its device in its dtype."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    # a large model made in float32 and then converted would need three times its memory
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def round_weights(base: LlamaForCausalLM, dtype: torch.dtype) -> None:
    """Round a float32 model's weights to values that `dtype` can hold, in place.

    Copies of the model in float32 and in `dtype` then compute the same function.
    """
    base.load_state_dict(
        {name: weight.to(dtype).float() for name, weight in base.state_dict().items()}
    )
