"""PEFT adapters of base models: find them, save them beside heads, and apply them again."""

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
from .gguf import is_gguf

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE = "base = peft_model.merge_and_unload(); base.save_pretrained(folder)"
"""Python code that error messages suggest: it merges a model's adapters and saves the result."""
_MERGE_FIRST = f"merge them first ({MERGE}) and train heads for the merged model"


class AdapterConfig(Schema):
    """The fields of an `adapter_config.json` that this library reads."""

    peft_type: str
    base_model_name_or_path: str | None = None


def base_of(name: str, **hub: Any) -> str | None:
    """Return the name of the base model of the adapter in `name`; None if `name` is no adapter.

    Args:
        name: a folder or hub id.
        hub: arguments of the hub, such as `revision` and `token`.

    Raises:
        FileNotFoundError: the base model is a local folder that does not exist.
        ValueError: the adapter's configuration is broken or does not name a base model.
    """
    if located(name, "config.json", **cache_arguments(hub)):
        return None  # a complete model; an adapter in the same folder does not matter
    file = find_adapter_config_file(name, **hub)
    if file is None:
        return None
    base = read_json(Path(file), AdapterConfig).base_model_name_or_path
    if not base:
        raise ValueError(f"{file}: base_model_name_or_path: the adapter's base model is not named")
    is_path = Path(base).is_absolute() or base.startswith(".")
    if is_path and not (Path(base).is_dir() or is_gguf(base)):
        raise FileNotFoundError(
            f"{file}: the adapter is for the base model in {base}, which is not there"
        )
    return base


def untie(base: PreTrainedModel) -> None:
    """Give the lm_head its own copy of the weight if it shares the one of the embeddings.

    An adapter of the lm_head would otherwise change the embeddings as well when it is merged.
    """
    lm_head = base.get_output_embeddings()
    if lm_head.weight is base.get_input_embeddings().weight:
        lm_head.weight = nn.Parameter(lm_head.weight.detach().clone(), requires_grad=False)
    base.config.get_text_config().tie_word_embeddings = False
    base.config.tie_word_embeddings = False


def digest(folder: Path) -> str:
    """Return the SHA-256 of an adapter's weights file; heads store it to identify the adapter."""
    return hashlib.sha256((folder / ADAPTER_WEIGHTS).read_bytes()).hexdigest()


def check(folder: Path) -> None:
    """Check that an adapter's files exist and can be read.

    Raises:
        ValueError: a file is missing or broken. The message names it.
    """
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"the backbone's adapter must be in {folder}, which has no {' and no '.join(missing)}"
        )
    read_json(folder / ADAPTER_CONFIG, AdapterConfig)
    with opened(folder / ADAPTER_WEIGHTS):
        pass


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence a FutureWarning that peft causes in transformers; users cannot avoid it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def require_peft() -> None:
    """Raise ImportError if peft is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise ImportError("this model has an adapter, which needs peft: pip install peft") from None


def apply(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return the base model with an adapter applied.

    The adapter is merged into the weights. Quantised weights cannot be merged; there the adapter
    stays a separate part of each layer.

    Raises:
        ImportError: peft is not installed.
        ValueError: the adapter does not fit the base model.
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


def _adapted_layers(base: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the layers that contain adapters, by name."""
    if "peft" not in sys.modules:  # without peft no layer can have an adapter
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
    """Return the name of the adapter that is active in the base model; None if none is active.

    Raises:
        ValueError: the active adapters cannot be saved as one adapter beside an unchanged base
            model: one is merged in place, several are active, or one is active in some layers only.
    """
    present: list[set[str]] = []  # the adapters of each layer
    active: list[set[str]] = []  # those of them that are active
    layer: Any
    for name, layer in _adapted_layers(base).items():
        if getattr(layer, "merged", False):
            raise ValueError(
                f"an adapter is merged into {name} in place: call unmerge_adapter(), or save "
                f"{MERGE}"
            )
        names = _adapter_names(layer)
        present.append(names)
        active.append(set() if layer.disable_adapters else names & set(layer.active_adapters))
    names = set().union(*active)
    if len(names) > 1:
        raise ValueError(
            f"several adapters act on the base model ({', '.join(sorted(names))}): {_MERGE_FIRST}"
        )
    if any(names & held != names & acts for held, acts in zip(present, active, strict=True)):
        raise ValueError(
            f"adapter {', '.join(names)} acts in some of its layers only: {_MERGE_FIRST}"
        )
    return names.pop() if names else None


def _adapter_names(layer: Any) -> set[str]:
    """Return the names of a layer's adapters."""
    parts = (getattr(layer, attribute, None) for attribute in layer.adapter_layer_names)
    return {
        name
        for part in parts
        if isinstance(part, (nn.ModuleDict, nn.ParameterDict, dict))
        for name in part
    }


def write(base: PreTrainedModel, name: str, folder: Path) -> None:
    """Write one adapter of the base model as a PEFT folder.

    Args:
        base: a model with adapters.
        name: name of the adapter.
        folder: folder to create.

    Raises:
        ValueError: the adapter was scaled after training, or ties the weights of embeddings and
            lm_head. A loaded adapter would lose both.
    """
    from peft import get_peft_model_state_dict

    scaled = next(
        (
            layer_name
            for layer_name, layer in _adapted_layers(base).items()
            if not _is_scaled_as_trained(layer, name)
        ),
        None,
    )
    if scaled is not None:
        raise ValueError(
            f"adapter {name} was scaled since it was trained, for example in {scaled}: "
            f"{_MERGE_FIRST}"
        )
    config = copy.copy(base.peft_config[name])
    if getattr(config, "ensure_weight_tying", False):
        raise ValueError(
            f"adapter {name} ties its weights in embeddings and lm_head: {_MERGE_FIRST}"
        )
    config.inference_mode = True
    with quiet_peft():
        state = get_peft_model_state_dict(base, adapter_name=name, save_embedding_layers=False)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tensors = {
        f"base_model.model.{tensor_name}": tensor.detach().cpu().contiguous()
        for tensor_name, tensor in state.items()
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _is_scaled_as_trained(layer: Any, name: str) -> bool:
    """Return True if a layer's LoRA has the scale alpha / r of its configuration.

    With rank-stabilised LoRA the scale is alpha / sqrt(r). Other kinds of adapters have no scale.
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
    """Yield the names and tensors of the base model's own parameters and buffers.

    Tensors of adapters are left out, and the names are those of the model without adapters.
    """
    layers = _adapted_layers(base)
    for name, tensor in (
        *base.named_parameters(remove_duplicate=False),
        *base.named_buffers(remove_duplicate=False),
    ):
        plain_name = _plain_name(name, layers)
        if plain_name is not None:
            yield plain_name, tensor


def _plain_name(name: str, layers: dict[str, nn.Module]) -> str | None:
    """Return a tensor's name without the parts that adapters add; None for an adapter's tensor."""
    kept: list[str] = []
    path = ""
    for part in name.split("."):
        if path not in layers:
            kept.append(part)
        elif part not in ("base_layer", "original_module"):
            return None
        path = f"{path}.{part}" if path else part
    return ".".join(kept)
