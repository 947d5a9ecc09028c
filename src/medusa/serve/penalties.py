"""OpenAI's presence and frequency penalties, as a logits processor."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class CountPenalty(LogitsProcessor):
    """Lowers the scores of tokens that the answer already has.

    A token that occurs c times in the answer loses `presence + c * frequency`. The prompt does not
    count.

    Args:
        prompt: tokens of the prompt.
    """

    def __init__(self, prompt: int, presence: float, frequency: float):
        self.prompt, self.presence, self.frequency = prompt, presence, frequency

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V], for texts [B, S]."""
        answer = input_ids[:, self.prompt :]
        counts = torch.zeros_like(scores).scatter_add_(
            1, answer, torch.ones_like(answer, dtype=scores.dtype)
        )
        return scores - self.presence * (counts > 0) - self.frequency * counts
