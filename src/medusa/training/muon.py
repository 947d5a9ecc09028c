"""The Muon optimizer for a backbone's weight matrices, for backbones that were trained with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def muon_matrices(base: PreTrainedModel) -> set[Tensor]:
    """Return the weights that Muon moves: all linear layers but the lm_head; no embeddings."""
    lm_head = base.get_output_embeddings()
    return {
        module.weight
        for module in base.modules()
        if isinstance(module, nn.Linear) and module is not lm_head
    }


class Muon(torch.optim.Optimizer):
    """An optimizer that moves some parameters by `torch.optim.Muon` and the rest by another one.

    Muon's updates are scaled to the size of AdamW's (`match_rms_adamw`), so that one learning rate
    fits both.

    Args:
        matrices: parameters that Muon moves, each [rows, columns].
        rest: optimizer of all other parameters.
        lr: Muon's learning rate.
        weight_decay: weight decay of the matrices.
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
        # The groups themselves, not copies: a scheduler that sets a learning rate sets it here.
        return [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do a step of both optimizers; `closure` is ignored."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both optimizers."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of both optimizers."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()  # loading has replaced the groups
