"""Prompts with known answers: held-out tasks of the embedded model."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ..data.prompts import encode
from ..demo import calibration_tasks
from ..demo.tasks import CATEGORIES, CHECKED, check, make_task
from .measure import Prompt
from .suites import Question

FIRST_SEED = 20_000_000
"""First seed of the tasks kept for measuring; neither training nor head evaluation uses them."""


def held_out(tokenizer: PreTrainedTokenizerBase, per_category: int) -> list[Prompt]:
    """Return held-out tasks, one of each category in turn, in a fixed order.

    Args:
        per_category: number of tasks of each category.
    """
    return [
        _prompt(tokenizer, category, FIRST_SEED + number)
        for number in range(per_category)
        for category in CATEGORIES
    ]


def task_questions(per_category: int) -> list[Question]:
    """Return the same tasks as questions of a suite."""
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


def calibration_prompts(tokenizer: PreTrainedTokenizerBase, count: int) -> list[list[int]]:
    """Return token ids of `count` calibration tasks of the embedded model, as requests."""
    chats = ([{"role": "user", "content": task.prompt}] for task in calibration_tasks(count))
    return [encode(tokenizer, chat) for chat in chats]


def _prompt(tokenizer: PreTrainedTokenizerBase, category: str, seed: int) -> Prompt:
    task = make_task(category, seed, "test")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": task.prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]

    def judge(answer: list[int]) -> bool | None:
        return check(task, tokenizer.decode(answer, skip_special_tokens=True))

    return Prompt(category, task.prompt, ids, judge)
