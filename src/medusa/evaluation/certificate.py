"""Certificates: greedy answers compared with plain decoding's, and the margins where they differ.

Two ways of computing the same logits round differently. They choose different tokens only where the
two best logits are closer than that; from there on the texts are different ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..loading import MedusaModel
from .perplexity import states_before
from .records import QuestionRecord, TurnRecord


@torch.inference_mode()
def certificate(
    model: MedusaModel, records: Sequence[QuestionRecord], method: str, baseline: str
) -> dict[str, Any]:
    """Compare a method's greedy answers with another's.

    Returns:
        `greedy_turns` and `identical`, the number of turns that were decoded greedily and of those
        with the same tokens. `divergences`: for each other turn the question, the position in the
        answer, and the margin, which is the difference between the model's logits of the two
        tokens there. `smallest_margin`: the smallest difference between the two best logits at any
        position of the baseline's answers up to there; None without greedy turns.
    """
    turns = [
        (record.question, number, turn)
        for record in records
        for number, turn in enumerate(record.turns)
        if not turn.temperature and method in turn.runs and baseline in turn.runs
    ]
    found, smallest = [], None
    for question, number, turn in turns:
        place, logits = _compared(model, turn, method, baseline)
        best = logits.topk(2).values
        margin = float((best[:, 0] - best[:, 1]).min())
        smallest = margin if smallest is None else min(smallest, margin)
        ours, theirs = turn.runs[method][0].ids, turn.runs[baseline][0].ids
        if ours != theirs:
            # one answer may be the beginning of the other
            tokens = [ids[place] for ids in (ours, theirs) if place < len(ids)]
            margin = float(logits[place][tokens].max() - logits[place][tokens].min())
            found.append(
                {"question": question, "turn": number, "position": place, "margin": margin}
            )
    return {
        "greedy_turns": len(turns),
        "identical": len(turns) - len(found),
        "divergences": found,
        "smallest_margin": smallest,
    }


def _compared(
    model: MedusaModel, turn: TurnRecord, method: str, baseline: str
) -> tuple[int, torch.Tensor]:
    """Return where two answers differ first, and the logits [place + 1, V] up to there.

    The place is the length of the answers if they are the same.
    """
    ours, theirs = turn.runs[method][0].ids, turn.runs[baseline][0].ids
    pairs = enumerate(zip(ours, theirs, strict=False))
    shorter = min(len(ours), len(theirs))
    place = next((place for place, (one, other) in pairs if one != other), shorter)
    states = states_before(model, turn.prompt, theirs[:place])
    return place, model.base_logits(states).float()
