"""Perplexity of answers under the backbone: how probable it finds the tokens that a method wrote.

It needs no judge. The lowest perplexity is not the best: greedy answers have a low one, and sampled
answers should have that of plain decoding. An acceptance that lets worse tokens pass raises it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..loading import MedusaModel
from .records import QuestionRecord

CHUNK = 256
"""Positions whose logits are computed at a time."""


@torch.inference_mode()
def with_losses(
    model: MedusaModel,
    records: Sequence[QuestionRecord],
    advance: Callable[[int], None] = lambda _: None,
) -> list[QuestionRecord]:
    """Return the records with the loss of each answer (`TurnRecord.losses`).

    Answers without token ids, which are those of servers, get none.

    Args:
        advance: called with 1 after each question.
    """
    found = []
    for record in records:
        turns = []
        for turn in record.turns:
            answers = {name: rounds[0].ids for name, rounds in turn.runs.items() if rounds[0].ids}
            losses = {name: loss(model, turn.prompt, ids) for name, ids in answers.items()}
            turns.append(turn.model_copy(update={"losses": losses}))
        found.append(record.model_copy(update={"turns": turns}))
        advance(1)
    return found


def loss(model: MedusaModel, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Return the sum of -log p of an answer's tokens under the backbone, each after the true text.

    The model's plain distribution is taken, without temperature.
    """
    before = states_before(model, prompt, answer[:-1])
    targets = torch.tensor(answer, device=before.device)
    return sum(
        F.cross_entropy(model.base_logits(states).float(), tokens, reduction="sum").item()
        for states, tokens in zip(before.split(CHUNK), targets.split(CHUNK), strict=True)
    )


def states_before(model: MedusaModel, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Return the hidden states [len(answer) + 1, H] before each token of an answer and after it."""
    text = torch.tensor([[*prompt, *answer]], device=model.device)
    return model.hidden_states(text)[0, len(prompt) - 1 :]
