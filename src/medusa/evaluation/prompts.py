"""Prompts with known answers: the embedded model's held-out tasks."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ..data.prompts import encode
from ..demo import calibration_tasks
from ..demo.tasks import CATEGORIES, check, make_task
from .measure import Prompt

FIRST_SEED = 20_000_000
"""Held-out tasks from here on are kept for measuring: neither training nor the heads' evaluation
draws them.
"""


def held_out(tokenizer: PreTrainedTokenizerBase, per_category: int) -> list[Prompt]:
    """`per_category` held-out tasks of every category, in a fixed order that mixes the
    categories.
    """
    return [
        _prompt(tokenizer, category, FIRST_SEED + number)
        for number in range(per_category)
        for category in CATEGORIES
    ]


def calibration_prompts(tokenizer: PreTrainedTokenizerBase, count: int) -> list[list[int]]:
    """Token ids of the embedded model's tasks for calibration, as requests."""
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
