"""PEFT adapters: told from a base model's layers, written beside heads, and put back on the base
model.
"""

from __future__ import annotations

import copy
import hashlib
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from ..files import Schema, read_json
from .checkpoint import cache_arguments, located, opened

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE = "base = peft_model.merge_and_unload(); base.save_pretrained(folder)"
"""Code by which a user turns a model with adapters into a model of its own."""


class AdapterConfig(Schema):
    """The fields of an adapter's configuration that are read; the others are PEFT's."""

    peft_type: str
    base_model_name_or_path: str | None = None


def base_of(name: str, **hub: Any) -> str | None:
    """Return the base model of the adapter that a folder or hub id holds; None where it holds none
    of its own.

    Raises:
        ValueError: the adapter's configuration is broken, or names no base model.
    """
    if located(name, "config.json", **cache_arguments(hub)):
        return None  # a whole model, which may have an adapter in the same folder
    file = find_adapter_config_file(name, **hub)
    if file is None:
        return None
    base = read_json(Path(file), AdapterConfig).base_model_name_or_path
    if not base:
        raise ValueError(f"{file}: base_model_name_or_path: the adapter's base model is not named")
    if (Path(base).is_absolute() or base.startswith(".")) and not Path(base).is_dir():
        raise FileNotFoundError(
            f"{file}: the adapter is for the base model in {base}, which is not there"
        )
    return base


def untie(base: PreTrainedModel) -> None:
    """Give the lm_head a weight of its own where it shares the embeddings': an adapter is for one
    of the two.
    """
    lm_head = base.get_output_embeddings()
    if lm_head.weight is base.get_input_embeddings().weight:
        lm_head.weight = nn.Parameter(lm_head.weight.detach().clone(), requires_grad=False)
    base.config.get_text_config().tie_word_embeddings = False
    base.config.tie_word_embeddings = False


def digest(folder: Path) -> str:
    """Return the digest of an adapter's weights."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def check(folder: Path) -> None:
    """Check an adapter's files.

    Raises:
        ValueError: a file is missing or broken; names it.
    """
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"the backbone's adapter is to lie in {folder}, which has no {' and no '.join(missing)}"
        )
    read_json(folder / CONFIG, AdapterConfig)
    with opened(folder / WEIGHTS):
        pass


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence a warning about names that peft uses of transformers, which users cannot change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def require_peft() -> None:
    """Raises ImportError where peft is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise ImportError("this model has an adapter, which needs peft: pip install peft") from None


def apply(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return the base with an adapter merged into its weights, or beside them where they are
    quantised.

    Raises:
        ImportError: peft is not installed.
        ValueError: the adapter does not fit the base.
    """
    require_peft()
    from peft import PeftModel

    untie(base)
    quantised = getattr(base, "quantization_method", None) is not None
    try:
        with quiet_peft():
            model = PeftModel.from_pretrained(base, folder)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"the adapter in {folder} does not fit the base model: {error}") from error
    if quantised:
        return model.get_base_model()
    with torch.no_grad():
        merged: PreTrainedModel = model.merge_and_unload()
    return merged


def _layers(base: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers, by name, that adapters were put into."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return {
        name: cast(nn.Module, module)
        for name, module in base.named_modules()
        if isinstance(module, kinds)
    }


def attached(base: PreTrainedModel) -> str | None:
    """Return the name of the adapter that changes what the base computes; None where no adapter
    does.

    Raises:
        ValueError: it cannot be saved as one adapter beside an unchanged base model.
    """
    there: list[set[str]] = []
    acting: list[set[str]] = []
    layer: Any
    for name, layer in _layers(base).items():
        if getattr(layer, "merged", False):
            raise ValueError(
                f"an adapter is merged into {name} in place: call unmerge_adapter(), or save "
                f"{MERGE}"
            )
        there.append(_names(layer))
        acting.append(set() if layer.disable_adapters else there[-1] & set(layer.active_adapters))
    names = set().union(*acting)
    if len(names) > 1:
        raise ValueError(
            f"several adapters act on the base model ({', '.join(sorted(names))}): {_MERGED_FIRST}"
        )
    if any(names & held != names & acts for held, acts in zip(there, acting, strict=True)):
        raise ValueError(
            f"adapter {', '.join(names)} acts in some of its layers only: {_MERGED_FIRST}"
        )
    return names.pop() if names else None


_MERGED_FIRST = f"merge them first ({MERGE}) and train heads for the merged model"


def _names(layer: Any) -> set[str]:
    """The names of the adapters that a layer has."""
    parts = (getattr(layer, each, None) for each in layer.adapter_layer_names)
    return {
        name
        for part in parts
        if isinstance(part, (nn.ModuleDict, nn.ParameterDict, dict))
        for name in part
    }


def write(base: PreTrainedModel, name: str, folder: Path) -> None:
    """Write an adapter of the base's as a PEFT folder.

    Raises:
        ValueError: the adapter was scaled, or needs embeddings and lm_head to share their weights,
            neither of which loading keeps.
    """
    from peft import get_peft_model_state_dict

    scaled = next(
        (each for each, layer in _layers(base).items() if not _is_scaled_as_trained(layer, name)),
        None,
    )
    if scaled is not None:
        raise ValueError(
            f"adapter {name} was scaled since it was trained, in {scaled} say: {_MERGED_FIRST}"
        )
    config = copy.copy(base.peft_config[name])
    if getattr(config, "ensure_weight_tying", False):
        raise ValueError(
            f"adapter {name} ties its weights in embeddings and lm_head: {_MERGED_FIRST}"
        )
    config.inference_mode = True
    with quiet_peft():
        state = get_peft_model_state_dict(base, adapter_name=name, save_embedding_layers=False)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    named = {
        f"base_model.model.{each}": tensor.detach().cpu().contiguous()
        for each, tensor in state.items()
    }
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})


def _is_scaled_as_trained(layer: Any, name: str) -> bool:
    """Whether a layer's LoRA has the scale that its configuration says; other kinds of adapters
    have none.
    """
    ranks, scales = getattr(layer, "r", None), getattr(layer, "scaling", None)
    if (
        not isinstance(ranks, dict)
        or not isinstance(scales, dict)
        or name not in scales
        or not ranks.get(name)
    ):
        return True
    alphas, rooted = getattr(layer, "lora_alpha", {}), getattr(layer, "use_rslora", {})
    if name not in alphas:
        return True
    rank = math.sqrt(ranks[name]) if rooted.get(name, False) else ranks[name]
    return math.isclose(scales[name], alphas[name] / rank)


def plain_tensors(base: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the base's parameters and buffers, under their names without adapters; the adapters'
    own are left out.
    """
    layers = _layers(base)
    for name, tensor in (
        *base.named_parameters(remove_duplicate=False),
        *base.named_buffers(remove_duplicate=False),
    ):
        plain = _plain_name(name, layers)
        if plain is not None:
            yield plain, tensor


def _plain_name(name: str, layers: dict[str, nn.Module]) -> str | None:
    """A tensor's name without the parts that adapters add; None where it is an adapter's own."""
    kept: list[str] = []
    path = ""
    for part in name.split("."):
        if path not in layers:
            kept.append(part)
        elif part not in ("base_layer", "original_module"):
            return None
        path = f"{path}.{part}" if path else part
    return ".".join(kept)
