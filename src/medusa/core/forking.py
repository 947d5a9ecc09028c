"""Forks of logits processors: copies whose later calls leave the original as it is.

A processor that remembers earlier calls, such as a grammar, needs a fork for each branch of a tree.
One that has a method `fork` (or `deep_copy`) makes its forks itself. Others are copied by
`copy.deepcopy`, and what they hold is forked in the same way: the matchers of llguidance and
xgrammar, which `deepcopy` cannot copy, have such methods.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import ModuleType, NoneType
from typing import Any

from torch import nn
from transformers import LogitsProcessor, PreTrainedTokenizerBase

METHODS = ("fork", "deep_copy")
"""Names of methods that return a fork."""

SHARED = (
    nn.Module,
    PreTrainedTokenizerBase,
    ModuleType,
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Condition,
    threading.Event,
    threading.Semaphore,
    threading.local,
)
"""Types of objects that forks share: they are large and do not change, or are locks, which hold no
state between calls.
"""

CONSTANT = (
    "builtins.LLTokenizer",  # of llguidance
    "xgrammar.tokenizer_info.TokenizerInfo",
    "xgrammar.compiler.GrammarCompiler",
    "xgrammar.compiler.CompiledGrammar",
    "outlines_core.Index",
    "outlines_core.Vocabulary",
)
"""Likewise, by name, because these libraries are optional. Most cannot be copied."""

ATOMS = (int, float, bool, str, bytes, NoneType)


def fork(processor: LogitsProcessor) -> LogitsProcessor:
    """Return a fork of a processor.

    Raises:
        Exception: the processor holds something that can neither be forked nor copied.
    """
    own = _method(processor)
    return own() if own is not None else copy.deepcopy(processor, _memo(processor))


def fork_as_far_as_possible(processor: LogitsProcessor) -> LogitsProcessor:
    """Return a fork; attributes that cannot be copied, such as open files, are shared."""
    try:
        return fork(processor)
    except Exception:  # copying a class may raise anything
        try:
            twin, memo = copy.copy(processor), _memo(processor)
        except Exception:
            return processor
    for name, value in vars(twin).items() if hasattr(twin, "__dict__") else ():
        with suppress(Exception):
            vars(twin)[name] = copy.deepcopy(value, memo)
    return twin


def _method(value: object) -> Callable[[], Any] | None:
    """Return the method that forks an object, if it has one."""
    for name in METHODS:
        if callable(getattr(type(value), name, None)):
            method: Callable[[], Any] = getattr(value, name)
            return method
    return None


def _memo(processor: LogitsProcessor) -> dict[int, Any]:
    """Return a memo for `deepcopy` with what a processor holds and `deepcopy` must not copy."""
    memo: dict[int, Any] = {}
    seen, left = set[int](), list(_held(processor))
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if _is_shared(value):
            memo[id(value)] = value
        elif (method := _method(value)) is not None:
            memo[id(value)] = method()
        else:
            left += (each for each in _held(value) if type(each) not in ATOMS)
    return memo


def _is_shared(value: object) -> bool:
    kind = type(value)
    return isinstance(value, SHARED) or f"{kind.__module__}.{kind.__qualname__}" in CONSTANT


def _held(value: object) -> Iterable[Any]:
    """Return the objects that `deepcopy` would copy with an object, as far as they are known."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, type) or hasattr(type(value), "__deepcopy__"):
        return ()
    return getattr(value, "__dict__", {}).values()
