"""Numbers of tokens and steps of an answer, as the protocol reports them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .answers import Answers


def usage(answers: Answers) -> dict[str, Any]:
    """Return the protocol's `usage`, with Medusa's figures under `medusa`."""
    rows = [each.row for each in answers.answers]
    prompt = len(rows[0].request.ids)
    new = sum(len(row.ids) - len(row.request.ids) for row in rows)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": max(row.cached for row in rows)},
        "medusa": medusa_figures(answers),
    }


def medusa_figures(answers: Answers) -> dict[str, Any]:
    """Return decoding steps, tokens a step, and how often a step gave 1, 2, ... tokens."""
    stats = [each.row.stats for each in answers.answers]
    accepted = sum((each.accepted for each in stats), Counter[int]())
    steps = accepted.total()
    return {
        "steps": steps,
        "acceleration_rate": round(sum(each.tokens for each in stats) / max(1, steps), 3),
        "accepted": {str(count): accepted[count] for count in sorted(accepted)},
    }
