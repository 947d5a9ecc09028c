"""Code tasks: write a small Python function from its description."""

from __future__ import annotations

import ast
import contextlib
import io
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from .task import Pool, Split, Task

_ASK = Pool(
    ["Write a Python function", "Please write a Python function", "I need a Python function", "Implement a function",
     "Define a Python function", "Code a function", "Create a Python function", "Give me a function in Python",
     "Help me write a function", "Could you program a function", "Can you implement a Python function",
     "Produce a Python function", "Make a function", "Develop a small function", "Write me a helper function",
     "Show me a Python function", "Draft a function", "Compose a short function", "Provide a Python function",
     "I am looking for a function"],
    held_out=0.25,
)  # fmt: skip
_CALLED = Pool(["named", "called", "with the name", "that is called"], held_out=0.25)
_END = Pool(
    ["", "Add a docstring.", "Only the code.", "Keep it simple.", "Thanks!", "Use a plain loop.", "No imports.",
     "Just the function."],
    held_out=0.25,
)  # fmt: skip
_VERBS = Pool(
    """get find make build compute collect process scan handle check create derive do run take prepare gather produce
        read apply evaluate obtain fetch figure work""".split()
)
_NOUNS = Pool(
    """value values result results number numbers item items data score scores price prices record records entry
        entries output total list report summary answer batch series sample samples stock order orders grade
        grades""".split()
)
_ARGUMENTS = Pool(
    "values numbers items data scores prices entries samples grades amounts readings".split(), 0.0
)
_WORDS = Pool(
    ["text", "word", "line", "message", "sentence", "phrase", "title", "label"], held_out=0.0
)
_OVER = Pool(["greater than", "above", "more than", "over"], held_out=0.0)
_UNDER = Pool(["less than", "below", "under", "smaller than"], held_out=0.0)


_LIST_INT, _LIST_LIST = ("list[int]", "int"), ("list[int]", "list[int]")
_STR_INT, _STR_STR = ("str", "int"), ("str", "str")


class Function(NamedTuple):
    """A function to write.

    Attributes:
        argument: name of its argument.
        types: annotations of the argument and of the result.
        does: the description, such as "returns the sum of the values".
        body: the reference body after the docstring.
        calls: arguments whose results distinguish correct functions from wrong ones.
    """

    argument: str
    types: tuple[str, str]
    does: str
    body: str
    calls: list[Any]


def _lists(rng: random.Random, *special: int) -> list[Any]:
    """Return lists of integers for calls; values next to the special ones are among them."""
    near = [value + step for value in special for step in (-1, 0, 1)]
    return [[], near, *([rng.randint(-30, 120) for _ in range(9)] + near for _ in range(3))]


def _texts(rng: random.Random, *special: str) -> list[Any]:
    """Return texts for calls, in which the special letters are frequent."""
    letters = "abcdefghijklmnop aeiou" + "".join(special) * 3
    return [
        "",
        "".join(special),
        *("".join(rng.choice(letters) for _ in range(20)) for _ in range(4)),
    ]


def _condition(rng: random.Random, split: Split) -> tuple[str, str, int]:
    """Return a condition in words and in Python, such as "above 3" and "> 3", and its bound."""
    bound, kind = rng.randint(1, 99), rng.randint(0, 3)
    if kind == 0:
        return f"{_OVER.pick(rng, split)} {bound}", f"> {bound}", bound
    if kind == 1:
        return f"{_UNDER.pick(rng, split)} {bound}", f"< {bound}", bound
    if kind == 2:
        return f"at least {bound}", f">= {bound}", bound
    return f"at most {bound}", f"<= {bound}", bound


def _filter(rng: random.Random, split: Split) -> Function:
    a, (words, test, bound) = _ARGUMENTS.pick(rng, split), _condition(rng, split)
    return Function(
        a,
        _LIST_LIST,
        f"returns a list of the {a} that are {words}",
        f"result = []\nfor item in {a}:\n    if item {test}:\n        result.append(item)\nreturn result",
        _lists(rng, bound),
    )


def _sum(rng: random.Random, split: Split) -> Function:
    a, (words, test, bound) = _ARGUMENTS.pick(rng, split), _condition(rng, split)
    return Function(
        a,
        _LIST_INT,
        f"returns the sum of the {a} that are {words}",
        f"total = 0\nfor item in {a}:\n    if item {test}:\n        total += item\nreturn total",
        _lists(rng, bound),
    )


def _count(rng: random.Random, split: Split) -> Function:
    a, (words, test, bound) = _ARGUMENTS.pick(rng, split), _condition(rng, split)
    return Function(
        a,
        _LIST_INT,
        f"counts how many of the {a} are {words}",
        f"count = 0\nfor item in {a}:\n    if item {test}:\n        count += 1\nreturn count",
        _lists(rng, bound),
    )


def _first(rng: random.Random, split: Split) -> Function:
    a, (words, test, bound) = _ARGUMENTS.pick(rng, split), _condition(rng, split)
    return Function(
        a,
        _LIST_INT,
        f"returns the index of the first of the {a} that is {words}, or -1",
        f"for index, item in enumerate({a}):\n    if item {test}:\n        return index\nreturn -1",
        _lists(rng, bound),
    )


def _linear(rng: random.Random, split: Split) -> Function:
    a, factor, offset = _ARGUMENTS.pick(rng, split), rng.randint(2, 20), rng.randint(1, 99)
    return Function(
        a,
        _LIST_LIST,
        f"multiplies each of the {a} by {factor}, adds {offset} and returns the list",
        f"result = []\nfor item in {a}:\n    result.append(item * {factor} + {offset})\nreturn result",
        _lists(rng, 0),
    )


def _clamp(rng: random.Random, split: Split) -> Function:
    a, low, high = _ARGUMENTS.pick(rng, split), rng.randint(0, 30), rng.randint(40, 99)
    return Function(
        a,
        _LIST_LIST,
        f"limits each of the {a} to the range from {low} to {high} and returns the list",
        f"result = []\nfor item in {a}:\n    result.append(max({low}, min({high}, item)))\nreturn result",
        _lists(rng, low, high),
    )


def _running(rng: random.Random, split: Split) -> Function:
    a, start = _ARGUMENTS.pick(rng, split), rng.randint(0, 99)
    return Function(
        a,
        _LIST_LIST,
        f"returns the running totals of the {a}, starting from {start}",
        f"total = {start}\nresult = []\nfor item in {a}:\n    total += item\n    result.append(total)\nreturn result",
        _lists(rng, 0),
    )


def _multiples(rng: random.Random, split: Split) -> Function:
    a, by = _ARGUMENTS.pick(rng, split), rng.randint(2, 12)
    return Function(
        a,
        _LIST_LIST,
        f"returns a list of the {a} that are divisible by {by}",
        f"result = []\nfor item in {a}:\n    if item % {by} == 0:\n        result.append(item)\nreturn result",
        _lists(rng, by, 2 * by, 3 * by, 5 * by),
    )


def _replace(rng: random.Random, split: Split) -> Function:
    a, (words, test, bound), new = (
        _ARGUMENTS.pick(rng, split),
        _condition(rng, split),
        rng.randint(0, 99),
    )
    return Function(
        a,
        _LIST_LIST,
        f"replaces each of the {a} that is {words} by {new} and returns the list",
        f"result = []\nfor item in {a}:\n    if item {test}:\n        result.append({new})\n    else:\n"
        f"        result.append(item)\nreturn result",
        _lists(rng, bound),
    )


def _letters(rng: random.Random, split: Split) -> Function:
    a, letter = _WORDS.pick(rng, split), rng.choice("abcdefghijklmnop")
    return Function(
        a,
        _STR_INT,
        f"counts how often the letter {letter} occurs in the {a}",
        f"count = 0\nfor letter in {a}:\n    if letter == '{letter}':\n        count += 1\nreturn count",
        _texts(rng, letter),
    )


def _without(rng: random.Random, split: Split) -> Function:
    a, letter = _WORDS.pick(rng, split), rng.choice("abcdefghijklmnop")
    return Function(
        a,
        _STR_STR,
        f"returns the {a} without the letter {letter}",
        f"result = ''\nfor letter in {a}:\n    if letter != '{letter}':\n        result += letter\nreturn result",
        _texts(rng, letter),
    )


def _swap(rng: random.Random, split: Split) -> Function:
    a, (old, new) = _WORDS.pick(rng, split), rng.sample("abcdefghijklmnop", 2)
    return Function(
        a,
        _STR_STR,
        f"returns the {a} with every letter {old} replaced by the letter {new}",
        f"result = ''\nfor letter in {a}:\n    if letter == '{old}':\n        result += '{new}'\n    else:\n"
        f"        result += letter\nreturn result",
        _texts(rng, old, new),
    )


def _largest(rng: random.Random, split: Split) -> Function:
    a, default = _ARGUMENTS.pick(rng, split), rng.randint(0, 99)
    return Function(
        a,
        _LIST_INT,
        f"returns the largest of the {a}, or {default} if there are none",
        f"if not {a}:\n    return {default}\nlargest = {a}[0]\nfor item in {a}:\n    if item > largest:\n"
        f"        largest = item\nreturn largest",
        [*_lists(rng, 0), [-5, -9]],
    )


def _distinct(rng: random.Random, split: Split) -> Function:
    a, count = _ARGUMENTS.pick(rng, split), rng.randint(2, 9)
    return Function(
        a,
        _LIST_LIST,
        f"returns the first {count} distinct {a} in order",
        f"result = []\nfor item in {a}:\n    if item not in result:\n        result.append(item)\n"
        f"return result[:{count}]",
        [
            [],
            [1, 1, 2, 2],
            [n // 2 for n in range(40)],
            [5, 5, 4, 3, 4, 2, 1, 0, 9, 8, 7, 6, 15, 14],
        ],
    )


_FAMILIES: tuple[Callable[[random.Random, Split], Function], ...] = (
    _filter, _sum, _count, _first, _linear, _clamp, _running, _multiples, _replace, _letters, _without, _swap,
    _largest, _distinct,
)  # fmt: skip


def make(rng: random.Random, split: Split) -> Task:
    """Return a random code task."""
    function = rng.choice(_FAMILIES)(rng, split)
    name = f"{_VERBS.pick(rng, split)}_{_NOUNS.pick(rng, split)}"
    ask = f"{_ASK.pick(rng, split)} {_CALLED.pick(rng, split)} {name}."
    prompt = (
        f"{ask} It takes {function.argument} and {function.does}. {_END.pick(rng, split)}".strip()
    )
    body = function.body.replace("\n", "\n    ")
    does = function.does[0].upper() + function.does[1:]
    takes, returns = function.types
    answer = (
        f'def {name}({function.argument}: {takes}) -> {returns}:\n    """{does}."""\n    {body}'
    )
    facts = {"name": name, "calls": function.calls}
    return Task("code", prompt, answer, {**facts, "expected": _run(answer, name, function.calls)})


_ALLOWED_CALLS = {
    "append",
    "enumerate",
    "len",
    "sum",
    "range",
    "min",
    "max",
    "sorted",
    "abs",
    "str",
    "int",
    "list",
}
_BUILTINS = {"enumerate": enumerate, "len": len, "min": min, "max": max, "sorted": sorted, "abs": abs, "sum": sum,
             "str": str, "int": int, "list": list, "range": lambda *args: range(*args)[:1000]}  # fmt: skip
_FORBIDDEN = (
    ast.Import,
    ast.ImportFrom,
    ast.While,
    ast.Pow,
    ast.Lambda,
    ast.ClassDef,
    ast.Global,
    ast.Try,
    ast.With,
)


def _run(source: str, name: str, calls: list[Any]) -> list[Any]:
    """Return the results of a function for some calls; it must have passed `_is_harmless`."""
    namespace: dict[str, Any] = {"__builtins__": _BUILTINS}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(source, "answer", "exec"), namespace)
        return [namespace[name](list(call) if isinstance(call, list) else call) for call in calls]


def _is_harmless(source: str, name: str) -> bool:
    """Return True if the source is one function that is safe to run.

    The function may have a single loop, over its argument, and may call only functions that cannot
    access the system, run for long or recurse.
    """
    tree = ast.parse(source)
    if (
        len(tree.body) != 1
        or not isinstance(tree.body[0], ast.FunctionDef)
        or tree.body[0].name != name
    ):
        return False
    if sum(isinstance(node, (ast.For, ast.comprehension)) for node in ast.walk(tree)) > 1:
        return False
    for node in ast.walk(tree):
        if isinstance(node, _FORBIDDEN) or (
            isinstance(node, ast.FunctionDef) and node is not tree.body[0]
        ):
            return False
        if isinstance(node, ast.Attribute) and node.attr not in _ALLOWED_CALLS:
            return False
        if isinstance(node, ast.Call):
            called = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if called not in _ALLOWED_CALLS:
                return False
        if isinstance(node, ast.For) and not _is_bounded(node, tree.body[0].args):
            return False
    return True


def _is_bounded(loop: ast.For, arguments: ast.arguments) -> bool:
    """Return True if a loop runs over an argument, or its enumeration, without extending it."""
    parameters = {argument.arg for argument in arguments.args}
    over = loop.iter.args[0] if isinstance(loop.iter, ast.Call) and loop.iter.args else loop.iter
    names = {node.id for node in ast.walk(over) if isinstance(node, ast.Name)}
    extended = {
        node.func.value.id
        for node in ast.walk(loop)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
    }
    return names <= parameters | {"range", "len"} and not extended & parameters


def check(task: Task, text: str) -> bool:
    """Return True if the text is a harmless function with the expected results."""
    source = text.strip().removeprefix("```python").removeprefix("```").removesuffix("```").strip()
    try:
        if not _is_harmless(source, task.facts["name"]):
            return False
        return _run(source, task.facts["name"], task.facts["calls"]) == task.facts["expected"]
    except Exception:
        return False
