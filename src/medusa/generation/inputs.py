"""The prompts of a call of `generate`: token ids and masks, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from ..core.checks import vocabulary_of_inputs
from ..core.model import TreeModel
from .options import ELSEWHERE


def read_input_ids(
    model: TreeModel, inputs: Tensor | None, config: GenerationConfig | None, kwargs: dict[str, Any]
) -> Tensor:
    """Return token ids [B, P] on the model's device.

    Without inputs a text begins with `bos_token_id`, as in transformers.

    Raises:
        ValueError: the inputs are no token ids of this model.
    """
    if inputs is None:
        begin = setting("bos_token_id", config, model.base.generation_config, kwargs)
        if begin is None:
            raise ValueError(
                "there is no prompt: pass input_ids, or bos_token_id, the token that begins a text"
            )
        return torch.tensor([[begin]], device=model.device)
    is_tensor = isinstance(inputs, Tensor)
    if not is_tensor or inputs.dtype not in (torch.long, torch.int) or inputs.ndim != 2:
        kind = f"{inputs.dtype} {list(inputs.shape)}" if is_tensor else type(inputs).__name__
        raise ValueError(f"input_ids must be a tensor of token ids [batch, length], got {kind}")
    if not inputs.numel():
        raise ValueError(
            f"input_ids must have at least one row and one token a row, got {list(inputs.shape)}"
        )
    vocabulary = vocabulary_of_inputs(model.base)
    if inputs.min() < 0 or inputs.max() >= vocabulary:
        raise ValueError(
            f"input_ids must lie in 0 to {vocabulary - 1}, the model's vocabulary; got "
            f"{int(inputs.min())} to {int(inputs.max())}"
        )
    return inputs.to(model.device)


def read_prompts(
    model: TreeModel,
    inputs: Tensor,
    attention_mask: Tensor | None,
    config: GenerationConfig | None,
    kwargs: dict[str, Any],
) -> list[Tensor]:
    """Return each row's token ids without those that its mask leaves out.

    Raises:
        ValueError: the mask has another shape, a row ends in masked tokens, positions are given
            that do not follow from the mask, or a row of a sliding-window model has holes.
    """
    if attention_mask is None:
        attention_mask = _mask_of(model, inputs, config, kwargs)
    mask = attention_mask.to(model.device).bool()
    if mask.shape != inputs.shape:
        raise ValueError(
            f"attention_mask has shape {list(mask.shape)}, input_ids {list(inputs.shape)}"
        )
    if not mask[:, -1].all():
        row = int(mask[:, -1].int().argmin())
        raise ValueError(
            f"row {row} of attention_mask ends in 0: pad on the left (tokenizer.padding_side = "
            "'left'), so that every row ends in a token of its prompt"
        )
    _check_positions(kwargs.pop("position_ids", None), mask)
    if any(model.windows.values()):
        _check_holes(mask)
    return [row[row_mask] for row, row_mask in zip(inputs, mask, strict=True)]


def _mask_of(
    model: TreeModel, inputs: Tensor, config: GenerationConfig | None, kwargs: dict[str, Any]
) -> Tensor:
    """Return the mask that transformers would infer: padding on the left is left out."""
    pad = setting("pad_token_id", config, model.base.generation_config, kwargs)
    eos = setting("eos_token_id", config, model.base.generation_config, kwargs)
    if pad is None or pad in end_tokens(eos):
        return torch.ones_like(inputs)
    return inputs.ne(pad).int().cummax(1).values


def _check_positions(positions: Tensor | None, mask: Tensor) -> None:
    if positions is None:
        return
    if not torch.equal(positions.to(mask.device)[mask], (mask.cumsum(1) - 1)[mask]):
        raise ValueError(
            f"position_ids: only those that follow from attention_mask are decoded; {ELSEWHERE} "
            "for others"
        )


def _check_holes(mask: Tensor) -> None:
    """Refuse masked tokens inside a prompt: transformers' sliding windows count columns."""
    holes = mask[:, 1:] < mask[:, :-1]
    if holes.any():
        row, column = holes.nonzero()[0].tolist()
        raise ValueError(
            f"attention_mask has a hole in row {row} at column {column + 1}, and this model has "
            "sliding windows: take the masked tokens out of input_ids"
        )


def setting(
    name: str, config: GenerationConfig | None, default: GenerationConfig, kwargs: dict[str, Any]
) -> Any:
    """Return a generation option: of the call, else of its configuration, else of the model's."""
    for value in (kwargs.get(name), getattr(config, name, None), getattr(default, name, None)):
        if value is not None:
            return value
    return None


def end_tokens(eos: int | list[int] | None) -> list[int]:
    """Return the end tokens of a configuration, which names one, several or none."""
    if eos is None:
        return []
    return eos if isinstance(eos, list) else [eos]
