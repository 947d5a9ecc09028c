"""Formats of heads that inference engines read, and what each engine expects of a folder.

An engine is a row of `ENGINES`. `exported` makes the tensors, `write_export` writes them, and
`check_export` reads a folder by the engine's own rules, independently of how it was made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.heads import TOKEN_MAP, MedusaConfig, MedusaHeads
from ..files import write_json
from .layouts import LAYOUTS, NATIVE, Layout, Part
from .names import CONFIG
from .stored import PICKLED_HEADS, WEIGHTS, StoredHeads

MODEL_WEIGHTS = "model.safetensors"
VLLM = next(layout for layout in LAYOUTS if layout.shared is not None)
VLLM_START = (
    "vllm serve {base} --speculative-config "
    '\'{{"method": "medusa", "model": "{heads}", "num_speculative_tokens": {count}}}\''
)
SHOWN = 5
"""Number of problems that an error message lists."""


@dataclass(frozen=True)
class Engine:
    """An inference engine that reads heads.

    Attributes:
        title: its name, and the versions that read this format.
        file: name of the file with the heads.
        layout: names of the tensors.
        settings: function from the heads' configuration and the base model's name to the content of
            `config.json`.
        start: command that starts it; `{heads}`, `{base}` and `{count}` stand for the folder, the
            base model and the number of heads.
        own_lm_head: every head needs an lm_head of its own.
        shared_layers: number of layers that heads without lm_heads must have; None is any number.
        most_layers: largest number of layers; None is any number.
        bias: layers need biases; heads without get zeros.
        token_map: heads that share an lm_head may propose some tokens only; others propose all.
    """

    title: str
    file: str
    layout: Layout
    settings: Callable[[MedusaConfig, str], dict[str, Any]]
    start: str
    own_lm_head: bool = True
    shared_layers: int | None = None
    most_layers: int | None = None
    bias: bool = True
    token_map: bool = False

    def config(self, config: MedusaConfig) -> MedusaConfig:
        """Return the configuration of heads as the engine gets them.

        Raises:
            ValueError: the engine does not compute heads of this kind.
        """
        if self.most_layers is not None and config.num_layers > self.most_layers:
            raise ValueError(
                f"{self.title} computes heads of at most {self.most_layers} layer, and these have "
                f"{config.num_layers}: train heads with num_layers={self.most_layers}"
            )
        may_share = self.shared_layers in (None, config.num_layers) and not self.own_lm_head
        own_lm_head = config.own_lm_head or not may_share
        keeps_map = self.token_map and not own_lm_head
        return replace(
            config,
            own_lm_head=own_lm_head,
            bias=config.num_layers > 0 and (config.bias or self.bias),
            draft_vocab_size=config.draft_vocab_size if keeps_map else None,
        )


def vllm_settings(config: MedusaConfig, base: str) -> dict[str, Any]:
    """Return the `config.json` for vLLM, which takes any key with "num" and "heads" for the number
    of heads, so that there is one such key.
    """
    found: dict[str, Any] = {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "num_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "medusa_fc_bias": config.bias,
        "original_lm_head": not config.own_lm_head,
        "base_model_name_or_path": base,
    }
    if config.draft_vocab_size is not None:
        found["truncated_vocab_size"] = config.draft_vocab_size
    return found


def original_settings(config: MedusaConfig, base: str) -> dict[str, Any]:
    """Return the authors' `config.json`, which TGI reads as well."""
    found: dict[str, Any] = {
        "model_type": "medusa",
        "base_model_name_or_path": base,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "medusa_num_heads": config.num_heads,
        "medusa_num_layers": config.num_layers,
        "medusa_fc_bias": config.bias,
    }
    return found if config.own_lm_head else {**found, "version": "2"}


def common_settings(config: MedusaConfig, base: str) -> dict[str, Any]:
    """Return a `config.json` with the names of TensorRT-LLM besides the authors'."""
    return {**original_settings(config, base), "num_medusa_heads": config.num_heads}


ENGINES = {
    "vllm": Engine(
        title="vLLM up to 0.32",
        file=MODEL_WEIGHTS,
        layout=VLLM,
        settings=vllm_settings,
        start=VLLM_START,
        own_lm_head=False,
        bias=False,
        token_map=True,
    ),
    "tgi": Engine(
        title="Text Generation Inference up to 3.3",
        file=WEIGHTS,
        layout=NATIVE,
        settings=original_settings,
        start="text-generation-launcher --model-id {heads} --speculate {count}",
        own_lm_head=False,
        shared_layers=1,
    ),
    "tensorrt-llm": Engine(
        title="TensorRT-LLM's examples/medusa (the TensorRT backend)",
        file=WEIGHTS,
        layout=NATIVE,
        settings=common_settings,
        start="python convert_checkpoint.py --model_dir {base} --medusa_model_dir {heads} "
        "--num_medusa_heads {count} --output_dir checkpoint",
    ),
    "original": Engine(
        title="the authors' code",
        file=PICKLED_HEADS,
        layout=NATIVE,
        settings=original_settings,
        start="python -m medusa.inference.cli --model {heads}",
        most_layers=1,  # it makes several layers as copies of one
    ),
    "common": Engine(
        title="vLLM 0.26 to 0.32, Text Generation Inference and TensorRT-LLM",
        file=WEIGHTS,
        layout=NATIVE,
        settings=common_settings,
        start=VLLM_START,
    ),
}
"""The engines by name; "common" is one folder for several."""


def exported(
    engine: Engine, heads: MedusaHeads, lm_head: Tensor
) -> tuple[MedusaConfig, dict[str, Tensor]]:
    """Return the configuration and the tensors of heads as an engine reads them.

    Args:
        lm_head: [V, H] the base model's, for heads that share it.

    Raises:
        ValueError: the engine does not compute these heads.
    """
    if heads.output_bias is not None:
        raise ValueError(
            f"the lm_head of the base model has a bias, which {engine.title} does not add to the "
            "heads' logits: these heads cannot be exported"
        )
    config, own = engine.config(heads.config), heads.tensors()
    given = {NATIVE.part(name): tensor for name, tensor in own.items()}
    found = {
        engine.layout.name(part): _tensor(part, given, config, lm_head) for part in _parts(config)
    }
    tokens = heads.token_map if config.draft_vocab_size is not None else None
    if tokens is not None:
        found[TOKEN_MAP] = tokens
    if engine.layout.shared is not None and not config.own_lm_head:
        rows = lm_head[: config.vocab_size]
        found[engine.layout.shared] = rows if tokens is None else rows[tokens]
    return config, {name: tensor.detach() for name, tensor in found.items()}


def _parts(config: MedusaConfig) -> list[Part]:
    """Return the roles of all tensors of heads."""
    parts = (NATIVE.part(name) for name, _ in config.shapes())
    return [part for part in parts if part is not None]


def _tensor(
    part: Part, given: Mapping[Part | None, Tensor], config: MedusaConfig, lm_head: Tensor
) -> Tensor:
    """Return a tensor of the heads: their own, else zeros for a bias and the base's lm_head."""
    if part in given:
        return given[part]
    if part.kind == "bias":
        return lm_head.new_zeros(config.hidden_size)
    return lm_head[: config.vocab_size]


def size_of(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> int:
    """Return the bytes that tensors take in a file.

    Args:
        dtype: of weights; None leaves them as they are.
    """
    return sum(tensor.numel() * _cast(tensor, dtype).itemsize for tensor in tensors.values())


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype


def write_export(
    folder: Path,
    engine: Engine,
    config: MedusaConfig,
    tensors: Mapping[str, Tensor],
    base: str,
    dtype: torch.dtype | None,
) -> None:
    """Write `config.json` and the file of tensors into an empty folder.

    Args:
        config: configuration of the heads, as of `exported`.
        base: name of the base model.
        dtype: of weights; None leaves them as they are.
    """
    # copies on the CPU, since safetensors refuses tensors that share memory
    cast = {
        name: tensor.to("cpu", _cast(tensor, dtype), copy=True).contiguous()
        for name, tensor in tensors.items()
    }
    write_json(folder / CONFIG, engine.settings(config, base), indent=2)
    if engine.file.endswith(".pt"):
        torch.save(cast, folder / engine.file)
    else:
        save_file(cast, folder / engine.file, metadata={"format": "pt"})


def check_export(folder: Path, engine: Engine) -> None:
    """Check a folder by the rules of an engine's loader.

    Raises:
        ValueError: the engine would refuse the folder, or would misread it; lists what is wrong.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    stored = StoredHeads.of(folder)
    shapes = {name: stored.checkpoint.entry(name).shape for name in stored.checkpoint.places}
    problems = []
    if stored.checkpoint.file.name != engine.file:
        problems.append(f"the heads are in {stored.checkpoint.file.name}, not in {engine.file}")
    if engine.layout is NATIVE and "architectures" in config:
        problems.append(f"{CONFIG} has architectures, which heads alone must not have")
    heads = {config[key] for key in config if "num" in key and "heads" in key}
    layers = {config[key] for key in config if "num" in key and "layers" in key}
    if len(heads) != 1 or len(layers) != 1:
        problems.append(f"{CONFIG} must give one number of heads and of layers")
    else:
        expected = _expected_shapes(engine, config, heads.pop(), layers.pop())
        problems += [f"tensor {name} is missing" for name in expected if name not in shapes]
        problems += [f"tensor {name} is not read" for name in shapes if name not in expected]
        problems += [
            f"tensor {name} has shape {list(shapes[name])}, not {list(shape)}"
            for name, shape in expected.items()
            if name in shapes and tuple(shapes[name]) != shape
        ]
    if problems:
        raise ValueError(
            f"{folder} is not what {engine.title} reads: {'; '.join(problems[:SHOWN])}"
        )


def _expected_shapes(
    engine: Engine, config: Mapping[str, Any], heads: int, layers: int
) -> dict[str, tuple[int, ...]]:
    """Return the tensors that an engine reads from a folder with this `config.json`."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    rows = config.get("truncated_vocab_size") or vocab
    shares = bool(config.get("original_lm_head")) or config.get("version") == "2"
    found: dict[str, tuple[int, ...]] = {}
    for head in range(heads):
        for layer in range(layers):
            found[engine.layout.name(Part("weight", head, layer))] = (hidden, hidden)
            if engine.bias or config["medusa_fc_bias"]:
                found[engine.layout.name(Part("bias", head, layer))] = (hidden,)
        if not shares:
            found[engine.layout.name(Part("lm_head", head, layers))] = (vocab, hidden)
    if shares and engine.layout.shared is not None:
        found[engine.layout.shared] = (rows, hidden)
    if rows < vocab:
        found[TOKEN_MAP] = (rows,)
    return found
