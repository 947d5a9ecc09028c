"""Checkers of answers: the number of a GSM8K answer, the program of a HumanEval answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from .sandbox import SECONDS, succeeds

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
MARK = "####"
"""Mark before the result in GSM8K's answers."""
FENCED = re.compile(r"```(?:[Pp]ython|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
"""A block of code in Markdown; the last one may lack its end."""

Check = Callable[[str], bool]
"""Function of an answer's text that returns True if the answer is right."""


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text, or the one after the mark `####`; None without numbers."""
    _, mark, after = text.rpartition(MARK)
    numbers = NUMBER.findall(after)[:1] if mark else NUMBER.findall(text)[-1:]
    try:
        return Decimal(numbers[0].replace(",", "")) if numbers else None
    except InvalidOperation:
        return None


def number_check(reference: str) -> Check:
    """Return the checker of a problem whose reference answer ends in a number.

    Raises:
        ValueError: the reference holds no number.
    """
    right = last_number(reference)
    if right is None:
        raise ValueError("the answer holds no number")
    return lambda answer: last_number(answer) == right


def program_of(answer: str, prompt: str, entry_point: str) -> str:
    """Return the program in an answer to a HumanEval problem.

    The program is the first block of code, or the whole answer without one. If it defines the
    function, the prompt's imports and helpers stand before it; otherwise it continues the prompt.
    """
    block = FENCED.search(answer)
    code = block.group(1) if block else answer
    if re.search(rf"^def {re.escape(entry_point)}\b", code, re.MULTILINE):
        before = prompt[: prompt.rfind(f"def {entry_point}")]
        return f"{before}\n{code}"
    return prompt + code


def program_check(prompt: str, entry_point: str, test: str, seconds: float = SECONDS) -> Check:
    """Return the checker of a HumanEval problem, which runs the program and the problem's test."""

    def check(answer: str) -> bool:
        program = program_of(answer, prompt, entry_point)
        return succeeds(f"{program}\n\n{test}\n\ncheck({entry_point})\n", seconds)

    return check
