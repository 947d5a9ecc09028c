"""Evaluation metrics: perplexity of the backbone, losses and accuracies of the heads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TOP = 5
"""Number of ranks that evaluations count."""
MAX_LOSS = 50.0
"""Largest loss whose perplexity is reported; a larger one would overflow."""


@dataclass
class EvaluationSums:
    """Sums over the positions of an evaluation.

    Attributes:
        entropies: [1 + K] sums of cross-entropies of backbone and heads.
        hits: [K, TOP] number of targets among a head's best r + 1 tokens.
        counts: [1 + K] number of targets of backbone and heads.
    """

    entropies: Tensor
    hits: Tensor
    counts: Tensor

    @classmethod
    def zeros(cls, num_heads: int) -> EvaluationSums:
        """Return sums of nothing."""
        return cls(
            torch.zeros(1 + num_heads), torch.zeros(num_heads, TOP), torch.zeros(1 + num_heads)
        )

    def add(self, result: dict[str, Tensor]) -> None:
        """Add the result of a `TrainingModel` with `top=TOP`."""
        self.entropies += result["sums"].cpu()
        self.hits += result["hits"].cpu()
        self.counts += result["counts"].cpu()

    @property
    def perplexity(self) -> float:
        """Perplexity of the backbone."""
        return math.exp(min(MAX_LOSS, float(self._losses[0])))

    @property
    def accuracies(self) -> list[list[float]]:
        """[K][TOP] share of targets among a head's best r + 1 tokens."""
        return (self.hits / self.counts[1:, None].clamp_min(1)).tolist()

    @property
    def _losses(self) -> Tensor:
        return self.entropies / self.counts.clamp_min(1)

    def head_metrics(self) -> dict[str, float]:
        """Return the loss and the top-1 to top-`TOP` accuracy of each head by metric name."""
        metrics: dict[str, float] = {}
        for number, ranks in enumerate(self.accuracies, start=1):
            metrics[f"loss_head_{number}"] = float(self._losses[number])
            metrics |= {f"head_{number}_top_{rank}": share for rank, share in enumerate(ranks, 1)}
        return metrics
