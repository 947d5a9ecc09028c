"""Tiny random base models of real architectures, and heads that are right never, always or
sometimes.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from medusa import CandidateTree, MedusaHeads, MedusaModel

VOCAB = 61
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
WINDOW = 8

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "qwen3": {"head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {"sliding_window": WINDOW, "original_max_position_embeddings": 256},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    "olmo2": {},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "decoder_sparse_step": 1,
    },
}


def tiny(
    name: str = "llama",
    dtype: torch.dtype = torch.float64,
    attention: str = "sdpa",
    seed: int = 0,
    **changes: Any,
) -> PreTrainedModel:
    """A random model whose greedy text is varied: small weights would make it say one token for
    ever.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **{**COMMON, **ARCHITECTURES.get(name, {}), **changes})
    extra = (
        {"experts_implementation": "eager"}
        if "num_experts_per_tok" in ARCHITECTURES.get(name, {})
        else {}
    )
    model = (
        AutoModelForCausalLM.from_config(config, attn_implementation=attention, **extra)
        .to(dtype)
        .eval()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    model.generation_config.eos_token_id = None
    return model


def prompt(length: int = 7, seed: int = 0) -> Tensor:
    """[1, length] random token ids, none of them the padding token."""
    return torch.randint(1, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


@cache
def varied_prompt(name: str, length: int = 12, new: int = 44) -> Tensor:
    """[1, length] the one of 16 random prompts after which the model's greedy text is least
    monotonous.
    """
    prompts = torch.cat([prompt(length, seed) for seed in range(16)])
    texts = (
        tiny(name, attention="eager")
        .generate(prompts, max_new_tokens=new, do_sample=False)[:, length:]
        .tolist()
    )
    best = max(range(16), key=lambda row: len(set(texts[row])) + len(set(texts[row][-new // 2 :])))
    return prompts[best : best + 1]


class ScriptedHeads(torch.nn.Module):
    """Stand-in heads that know the base model's text and are right as often as they are told to be.

    The text is looked up by the hidden state they are given, so they work inside the real loop.
    """

    token_map = None  # they may propose all tokens
    proposed = MedusaHeads.proposed

    def __init__(self, model: MedusaModel, texts: list[list[int]], accuracy: float, seed: int = 0):
        super().__init__()
        self.config = model.heads.config
        states, following = [], []
        for text in texts:
            ids = torch.tensor([text])
            states.append(model.hidden_states(ids)[0])
            following.append(text + [0] * (self.config.num_heads + 2))
        self.states, self.following = states, following
        self.accuracy = accuracy
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, hidden: Tensor, lm_head: Any = None, first: int | None = None) -> Tensor:
        logits = torch.rand(
            self.config.num_heads, len(hidden), self.config.vocab_size, generator=self.generator
        )
        for row, state in enumerate(hidden):
            distances = [(known - state).abs().amax(-1).min(0) for known in self.states]
            text = min(range(len(distances)), key=lambda index: float(distances[index].values))
            position = int(distances[text].indices)
            for head in range(self.config.num_heads):
                if torch.rand((), generator=self.generator) < self.accuracy:
                    rank = torch.randint(0, 2, (), generator=self.generator)
                    logits[head, row, self.following[text][position + 2 + head]] += 2 - rank
        return logits[:first].to(hidden.dtype)


def publish(folder: str | Path, hub: Path, repo: str, commit: str = "a" * 40) -> None:
    """Lay a folder into a hub cache, as if it had been downloaded from a repository."""
    place = hub / f"models--{repo.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)


OWN_TREE = CandidateTree([(0,), (3,), (3, 1), (3, 1, 0)])


def changed_heads(base: PreTrainedModel, **options: Any) -> MedusaModel:
    """Return a model with `OWN_TREE` and heads whose weights all differ from those of new heads."""
    model = MedusaModel.from_base(base, num_heads=3, tree=OWN_TREE, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.heads.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model
