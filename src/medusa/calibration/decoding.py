"""Decoding of whole batches for calibration; the loop itself belongs to `generation`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.model import TreeModel
from ..core.prefill import left_padded
from ..generation import Session, prepare


def decode_batch(model: TreeModel, prompts: Sequence[Sequence[int]], **arguments: Any) -> Session:
    """Decode prompts as one batch to their ends and return the finished session.

    Args:
        prompts: token ids of each prompt.
        arguments: keyword arguments of `generate`.
    """
    ids, mask = left_padded([list(prompt) for prompt in prompts], model.device)
    session = prepare(model, ids, attention_mask=mask, **arguments)
    for _ in session:
        pass
    return session
