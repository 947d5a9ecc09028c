"""A backbone that training changed: the adapter (peft) that is kept beside its heads, put back on the base model."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"


def untie(base: PreTrainedModel) -> None:
    """Give the lm_head a weight of its own where it shares the embeddings': an adapter is for one of the two."""
    lm_head = base.get_output_embeddings()
    if lm_head.weight is base.get_input_embeddings().weight:
        lm_head.weight = nn.Parameter(lm_head.weight.detach().clone(), requires_grad=False)
    base.config.get_text_config().tie_word_embeddings = False
    base.config.tie_word_embeddings = False


def digest(folder: Path) -> str:
    """Of an adapter's weights."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without a warning to peft's authors: it asks transformers for what will have another name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def apply(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base with an adapter merged into its weights, or beside them where they are quantised.

    Raises:
        ImportError: peft is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise ImportError("this model's backbone has an adapter, which needs peft: pip install peft") from None
    untie(base)
    quantised = getattr(base, "quantization_method", None) is not None
    with quiet_peft():
        model = PeftModel.from_pretrained(base, folder)
    if quantised:
        return model.get_base_model()
    with torch.no_grad():
        merged: PreTrainedModel = model.merge_and_unload()
    return merged
