"""A check that an engine's rows, queue, caches and budget agree with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from .budget import CacheBudget
from .cache import TreeCache
from .prefixes import Prefixes
from .request import Row


def check_integrity(
    rows: Sequence[Row],
    joining: Sequence[Row],
    cache: TreeCache | None,
    budget: CacheBudget,
    prefixes: Prefixes,
    idle: bool,
) -> None:
    """Check an engine between two steps.

    Args:
        rows: the rows that decode.
        joining: the rows that are being prefilled.
        cache: the cache that decodes; None where nobody needs it.
        idle: nobody decodes or waits.

    Raises:
        RuntimeError: something disagrees; lists all that does.
    """
    faults = [
        *_of_rows(rows, joining),
        *_of_cache(rows, cache),
        *_of_memory(rows, joining, cache, budget, prefixes),
    ]
    if idle and cache is not None:
        faults.append("nobody decodes or waits, and the cache was not given back")
    if faults:
        raise RuntimeError("the engine's state is damaged: " + "; ".join(faults))


def _of_rows(rows: Sequence[Row], joining: Sequence[Row]) -> Iterator[str]:
    times = Counter(row.number for row in (*rows, *joining))
    if twice := [number for number, count in times.items() if count > 1]:
        yield f"requests {twice} have several rows"
    if ended := [row.number for row in rows if row.finished]:
        yield f"requests {ended} have ended and still have a row"
    if begun := [row.number for row in joining if row.hidden is not None]:
        yield f"requests {begun} are prefilled and have a first token already"


def _of_cache(rows: Sequence[Row], cache: TreeCache | None) -> Iterator[str]:
    if cache is None:
        if rows:
            yield f"{len(rows)} rows decode without a cache"
        return
    # the last token of a text has not been run
    expected = [len(row.ids) - 1 for row in rows]
    if cache.length != expected:
        yield f"the cache holds {cache.length} tokens of the rows, whose texts have {expected}"
    held, columns = cache.allocated
    if held < len(cache.length) or columns < max(cache.length, default=0):
        yield f"the cache has {held} rows of {columns} columns for {cache.length} tokens"


def _of_memory(
    rows: Sequence[Row],
    joining: Sequence[Row],
    cache: TreeCache | None,
    budget: CacheBudget,
    prefixes: Prefixes,
) -> Iterator[str]:
    if prefixes.tokens > prefixes.most:
        yield f"{prefixes.tokens} tokens of prefixes are kept, more than {prefixes.most}"
    if budget.tokens is None:
        return
    held, columns = cache.allocated if cache is not None else (0, 0)
    reserved = budget.needed(rows, joining)
    taken = max(held * columns + reserved.prefill, reserved.tokens) + prefixes.tokens
    if taken > budget.tokens:
        yield f"{taken} tokens of memory are taken, more than cache_tokens, {budget.tokens}"
