"""Seeded tasks for the embedded model: six categories, five of them with an exact checker.

The generator is the yardstick of the embedded model: it was frozen before any heads were trained.
"""

from __future__ import annotations

import random
from types import ModuleType

from . import code, extraction, math, sql, tables, writing
from .task import Split, Task

__all__ = ["CATEGORIES", "CHECKED", "Split", "Task", "check", "make_task"]

_ROOMS: dict[str, ModuleType] = {
    "extraction": extraction,
    "tables": tables,
    "sql": sql,
    "math": math,
    "code": code,
    "writing": writing,
}
CATEGORIES = tuple(_ROOMS)
CHECKED = tuple(name for name in CATEGORIES if name != "writing")


def make_task(category: str, seed: int, split: Split = "test") -> Task:
    """The task of a category that a seed stands for, the same on every machine and in every run."""
    task: Task = _ROOMS[category].make(random.Random(f"{category}/{split}/{seed}"), split)
    return task


def check(task: Task, text: str) -> bool | None:
    """Whether `text` answers the task; None where the category has no exact checker (writing)."""
    if task.category not in CHECKED:
        return None
    return bool(_ROOMS[task.category].check(task, text))
