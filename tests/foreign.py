"""Medusa checkpoints as other programs write them, by the names, shapes and files documented there.

Raw heads are tensors by the authors' names: `{head}.{layer}.linear.weight` and `.bias` of residual
layers, and `{head}.{layers}.weight` for an lm_head of the head's own.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

HIDDEN, VOCAB = 32, 61


def raw_heads(
    heads: int = 3, layers: int = 1, own: bool = True, bias: bool = True, tied: bool = False
) -> dict[str, Tensor]:
    """Return random heads; with `tied`, a head repeats one layer, as `[ResBlock] * layers` does."""
    generator = torch.Generator().manual_seed(heads + 10 * layers)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / HIDDEN**0.5

    raw = {}
    for head in range(heads):
        for layer in range(layers):
            first = f"{head}.0.linear"
            repeats = tied and layer > 0
            raw[f"{head}.{layer}.linear.weight"] = (
                raw[f"{first}.weight"] if repeats else random(HIDDEN, HIDDEN)
            )
            if bias:
                raw[f"{head}.{layer}.linear.bias"] = (
                    raw[f"{first}.bias"] if repeats else random(HIDDEN)
                )
        if own:
            raw[f"{head}.{layers}.weight"] = random(VOCAB, HIDDEN)
    return raw


def head_logits(raw: dict[str, Tensor], hidden: Tensor, lm_head: Tensor) -> Tensor:
    """Return the logits [K, ..., V] of all heads, computed from the raw tensors one by one."""
    logits = []
    for head in sorted({int(name.split(".")[0]) for name in raw}):
        state, layer = hidden, 0
        while (weight := raw.get(f"{head}.{layer}.linear.weight")) is not None:
            bias = raw.get(f"{head}.{layer}.linear.bias")
            product = F.linear(state, weight.to(state), None if bias is None else bias.to(state))
            state, layer = state + product * product.sigmoid(), layer + 1
        own = raw.get(f"{head}.{layer}.weight", lm_head)
        logits.append(F.linear(state, own.to(state)))
    return torch.stack(logits)


def write_config(folder: Path, **fields: object) -> None:
    """Write or extend a folder's `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.json"
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**content, **fields}))


def pickled_heads(folder: Path, raw: dict[str, Tensor], base: str = "../base") -> None:
    """Write heads as the authors' first releases: the config says 2 heads, whatever there are."""
    layers = max(int(name.split(".")[1]) for name in raw)
    write_config(
        folder,
        base_model_name_or_path=base,
        medusa_num_heads=2,
        medusa_num_layers=layers,
        transformers_version="4.31.0",
    )
    torch.save(raw, folder / "medusa_lm_head.pt")


def safe_heads(folder: Path, raw: dict[str, Tensor], base: str = "../base") -> None:
    """Write heads as TGI and LoRAX read them; some such folders say that they are a llama."""
    write_config(
        folder,
        model_type="llama",
        base_model_name_or_path=base,
        medusa_num_heads=len({name.split(".")[0] for name in raw}),
        medusa_num_layers=1,
        version="2",
    )
    save_file(
        {name: tensor.clone() for name, tensor in raw.items()},
        folder / "medusa_lm_head.safetensors",
    )


def vllm_heads(
    folder: Path,
    raw: dict[str, Tensor],
    shared: Tensor | None = None,
    shared_name: str = "lm_head.weight",
) -> None:
    """Write heads in vLLM's own names; heads without lm_heads carry a copy of the base's."""
    stored = {}
    for name, tensor in raw.items():
        head, layer, *rest = name.split(".")
        renamed = (
            f"blocks.{head}.layers.{layer}.{rest[1]}"
            if rest[0] == "linear"
            else f"lm_heads.{head}.weight"
        )
        stored[renamed] = tensor.clone()
    if shared is not None:
        stored[shared_name] = shared.detach().clone().float()
    write_config(
        folder,
        model_type="medusa",
        architectures=["MedusaModel"],
        base_model_name_or_path="../base",
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        num_heads=len({name.split(".")[0] for name in raw}),
        num_hidden_layers=len(
            {name for name in raw if name.startswith("0.") and name.endswith("linear.weight")}
        ),
        medusa_fc_bias=any(name.endswith("bias") for name in raw),
        original_lm_head=shared is not None,
    )
    save_file(stored, folder / "model.safetensors")


def mlc_heads(folder: Path, raw: dict[str, Tensor], base: str = "../base") -> None:
    """Write heads as MLC-LLM converts them: a model's file that holds `medusa_head` alone."""
    write_config(folder, base_model_name_or_path=base, medusa_num_heads=3, medusa_num_layers=1)
    torch.save(
        {f"medusa_head.{name}": tensor for name, tensor in raw.items()},
        folder / "pytorch_model.bin",
    )


FORMS = ("one safetensors file", "safetensors in shards", "one pickle", "pickles in shards")
"""How a whole model may be stored."""


def whole_model(
    folder: Path,
    raw: dict[str, Tensor],
    base: PreTrainedModel,
    form: str = FORMS[0],
    prefix: str = "medusa_head.",
) -> None:
    """Write a model with heads among its tensors: the prefix is the authors' or ModelOpt's."""
    base.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    tensors = {name: tensor.detach().clone() for name, tensor in base.state_dict().items()}
    tensors |= {f"{prefix}{name}": tensor.clone() for name, tensor in raw.items()}
    if prefix == "medusa_head.":
        write_config(folder, medusa_num_heads=3, medusa_num_layers=1)
    else:
        write_config(folder, medusa={"num_medusa_heads": 3, "num_medusa_layers": 1})
    store(folder, tensors, form)


def store(folder: Path, tensors: dict[str, Tensor], form: str) -> None:
    """Write the tensors of a model in one file or in two shards with an index."""
    pickled = "pickle" in form
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    names = list(tensors)
    shards = {f"{stem}.{suffix}": names}
    if "shards" in form:
        shards = {f"{stem}-0000{part + 1}-of-00002.{suffix}": names[part::2] for part in range(2)}
        places = {name: file for file, held in shards.items() for name in held}
        index = json.dumps({"metadata": {}, "weight_map": places})
        (folder / f"{stem}.{suffix}.index.json").write_text(index)
    for file, held in shards.items():
        content = {name: tensors[name] for name in held}
        if pickled:
            torch.save(content, folder / file)
        else:
            save_file(content, folder / file, metadata={"format": "pt"})
