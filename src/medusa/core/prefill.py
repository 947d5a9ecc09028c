"""Prompts that are being prefilled, possibly in several chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cache import TreeCache
from .request import Row


@dataclass
class Prefill:
    """A batch of prompts that is being prefilled, possibly in several chunks.

    Attributes:
        rows: requests that are prefilled together.
        ids: [B, P] their prompts, left-padded.
        mask: [B, P] 0 for padding, 1 for tokens.
        cache: states of the columns that have been computed.
        done: number of these columns.
        seconds: time spent so far.
    """

    rows: list[Row]
    ids: Tensor
    mask: Tensor
    cache: TreeCache
    done: int = 0
    seconds: float = 0.0


def left_padded(prompts: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids [B, P] with zeros before shorter prompts, and the mask [B, P] of tokens."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
