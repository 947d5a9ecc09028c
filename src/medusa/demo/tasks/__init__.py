"""Seeded tasks for the embedded model, in six categories; five have an exact checker.

The tasks measure the embedded model. They were fixed before any heads were trained, and a change to
the order of random draws would change every task.
"""

from __future__ import annotations

import random
from types import ModuleType

from . import code, extraction, math, sql, tables, writing
from .task import Split, Task

__all__ = ["CATEGORIES", "CHECKED", "Split", "Task", "check", "make_task"]

_GENERATORS: dict[str, ModuleType] = {
    "extraction": extraction,
    "tables": tables,
    "sql": sql,
    "math": math,
    "code": code,
    "writing": writing,
}
CATEGORIES = tuple(_GENERATORS)
CHECKED = tuple(name for name in CATEGORIES if name != "writing")


def make_task(category: str, seed: int, split: Split = "test") -> Task:
    """Return the task of a category for a seed; it is the same on every machine.

    Args:
        category: one of `CATEGORIES`.
        seed: any integer.
        split: "test" draws values and wordings that never occur in "train".
    """
    task: Task = _GENERATORS[category].make(random.Random(f"{category}/{split}/{seed}"), split)
    return task


def check(task: Task, text: str) -> bool | None:
    """Return True if `text` solves the task; None if its category (writing) has no checker."""
    if task.category not in CHECKED:
        return None
    return bool(_GENERATORS[task.category].check(task, text))
