"""Prompts with known answers: held-out tasks of the embedded model."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ..data.prompts import encode
from ..demo import calibration_tasks
from ..demo.tasks import CATEGORIES, CHECKED, check, make_task
from .suites import Question

FIRST_SEED = 20_000_000
"""First seed of the tasks kept for measuring; neither training nor head evaluation uses them."""


def task_questions(per_category: int) -> list[Question]:
    """Return held-out tasks, one of each category in turn, in a fixed order.

    Args:
        per_category: number of tasks of each category.
    """
    return [
        _question(category, FIRST_SEED + number)
        for number in range(per_category)
        for category in CATEGORIES
    ]


def _question(category: str, seed: int) -> Question:
    task = make_task(category, seed, "test")
    right = (lambda answer: bool(check(task, answer))) if category in CHECKED else None
    messages = [{"role": "user", "content": task.prompt}]
    return Question(f"{category}-{seed - FIRST_SEED}", category, messages, check=right)


def question_ids(tokenizer: PreTrainedTokenizerBase, question: Question) -> list[int]:
    """Return the token ids of a question's first turn, as a request."""
    return encode(tokenizer, list(question.messages))


def calibration_prompts(tokenizer: PreTrainedTokenizerBase, count: int) -> list[list[int]]:
    """Return token ids of `count` calibration tasks of the embedded model, as requests."""
    chats = ([{"role": "user", "content": task.prompt}] for task in calibration_tasks(count))
    return [encode(tokenizer, chat) for chat in chats]
