"""Muon for the matrices of a backbone that learns, for models that were made with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def matrices(base: PreTrainedModel) -> set[Tensor]:
    """What Muon is for: the weights of the layers' linear maps, not the embeddings nor the
    lm_head.
    """
    lm_head = base.get_output_embeddings()
    return {
        each.weight
        for each in base.modules()
        if isinstance(each, nn.Linear) and each is not lm_head
    }


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` for some parameters and another optimizer for the rest, as one optimizer.

    Muon's steps are as long as AdamW's (`match_rms_adamw`), so that one learning rate fits both.

    Args:
        matrices: what Muon moves, each of shape [rows, columns].
        rest: the optimizer of everything else.
        lr: Muon's learning rate.
        weight_decay: of the matrices.
    """

    def __init__(
        self, matrices: list[Tensor], rest: torch.optim.Optimizer, lr: float, weight_decay: float
    ):
        muon = torch.optim.Muon(
            matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.parts = (muon, rest)
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()
