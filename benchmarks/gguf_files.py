"""Write a Llama as a GGUF file, which llama.cpp reads."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}


def write_gguf(
    base: LlamaForCausalLM,
    file: Path,
    kind: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write a model as GGUF: matrices in a type of `TYPES`, norms in float32.

    Args:
        tokenizer: a byte-level BPE tokenizer to write into the file; None writes none, and
            llama.cpp then takes only token ids.
    """
    writer = gguf.GGUFWriter(file, "llama")
    _write_config(writer, base.config)
    if tokenizer is None:
        writer.add_tokenizer_model("none")
    else:
        _write_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, base.config.num_hidden_layers)
    for name, tensor in base.state_dict().items():
        if base.config.tie_word_embeddings and name == "lm_head.weight":
            continue
        weight = tensor.float()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = interleaved_pairs(weight, base.config.head_dim)
        values = weight.numpy()
        target = str(names.get_name(name, (".weight",)))
        if values.ndim == 1 or kind == "f32":
            writer.add_tensor(target, values)
        else:
            quantized = gguf.quants.quantize(values, TYPES[kind])
            writer.add_tensor(target, quantized, raw_dtype=TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_config(writer: gguf.GGUFWriter, config: LlamaConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.all_special_tokens)
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    kinds = [
        gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def interleaved_pairs(weight: torch.Tensor, width: int) -> torch.Tensor:
    """Return a projection with rotary pairs side by side, as llama.cpp stores them.

    transformers stores the two dimensions of a pair half a head apart.

    Args:
        weight: [heads x width, H].
        width: dimensions of a head.
    """
    return weight.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2).contiguous()
