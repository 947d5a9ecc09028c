"""Numbers of tokens and steps of an answer, as the protocols report them."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from .answers import Answers


class Counts(NamedTuple):
    """Tokens of a prompt, those of them whose states were cached, and tokens of its answers."""

    prompt: int
    cached: int
    new: int


def counts(answers: Answers) -> Counts:
    """Return the numbers of tokens so far."""
    rows = [each.row for each in answers.answers]
    prompt = len(rows[0].request.ids)
    cached = max(row.cached for row in rows)
    return Counts(prompt, cached, sum(len(row.ids) - len(row.request.ids) for row in rows))


def usage(answers: Answers) -> dict[str, Any]:
    """Return `usage` of chats and completions, with Medusa's figures under `medusa`."""
    found = counts(answers)
    return {
        "prompt_tokens": found.prompt,
        "completion_tokens": found.new,
        "total_tokens": found.prompt + found.new,
        "prompt_tokens_details": {"cached_tokens": found.cached},
        "medusa": medusa_figures(answers),
    }


def responses_usage(answers: Answers) -> dict[str, Any]:
    """Return `usage` of responses."""
    found = counts(answers)
    return {
        "input_tokens": found.prompt,
        "input_tokens_details": {"cached_tokens": found.cached, "cache_write_tokens": 0},
        "output_tokens": found.new,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": found.prompt + found.new,
        "medusa": medusa_figures(answers),
    }


def messages_usage(answers: Answers) -> dict[str, Any]:
    """Return `usage` of messages; their input tokens are those that were not cached."""
    found = counts(answers)
    return {
        "input_tokens": found.prompt - found.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": found.cached,
        "output_tokens": found.new,
        "medusa": medusa_figures(answers),
    }


def medusa_figures(answers: Answers) -> dict[str, Any]:
    """Return decoding steps, tokens a step, and how often a step gave 1, 2, ... tokens."""
    stats = [each.row.stats for each in answers.answers]
    # copies, because the engine's thread may count meanwhile
    accepted = sum((each.accepted.copy() for each in stats), Counter[int]())
    steps = accepted.total()
    return {
        "steps": steps,
        "acceleration_rate": round(sum(each.tokens for each in stats) / max(1, steps), 3),
        "accepted": {str(count): accepted[count] for count in sorted(accepted)},
    }
