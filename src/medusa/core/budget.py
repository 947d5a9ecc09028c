"""The memory of an engine's caches: requests reserve all that they may need before they begin.

Memory is counted in tokens. A token takes one column of one row, in all layers. The cache of the
rows that decode is a rectangle, so a long text takes its columns in all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .cache import TreeCache
from .model import TreeModel
from .prefixes import Prefixes
from .request import Row
from .slots import Slots


@dataclass(frozen=True)
class Reservation:
    """The memory that rows may take until another one joins.

    Attributes:
        rows: rows of the cache that decodes.
        columns: columns of each of them.
        decoding: tokens of this cache.
        prefill: tokens of the cache of prompts that are being prefilled.
    """

    rows: int
    columns: int
    decoding: int
    prefill: int

    @property
    def tokens(self) -> int:
        return self.decoding + self.prefill


class CacheBudget:
    """Bounds the memory of an engine's caches.

    While a layer's tensors are replaced by larger ones, both exist; these are not counted.

    Args:
        model: the model that runs.
        tokens: tokens that the caches may have; None for no bound.
    """

    def __init__(self, model: TreeModel, tokens: int | None = None):
        if tokens is not None and tokens < 1:
            raise ValueError(f"cache_tokens must be at least 1, got {tokens}")
        self.model, self.tokens = model, tokens
        self._read_model()

    def _read_model(self) -> None:
        """Read how the model allocates its caches, as this takes too long for each step."""
        compiled = self.model.compiled
        self._steps = Slots(0, self.model.captures_steps, compiled)
        self._prompts = Slots(0, named=compiled)

    def needed(self, rows: Sequence[Row], joining: Sequence[Row] = ()) -> Reservation:
        """Return what rows that decode need, together with rows that are being prefilled."""
        if not rows and not joining:
            return Reservation(0, 0, 0, 0)
        steps, prompts = self._steps, self._prompts
        count, columns = len(rows) + len(joining), self.columns([*rows, *joining])
        if alone(rows, joining) and not steps.static:  # its cache becomes the one that decodes
            return Reservation(0, columns, 0, prompts.tokens(1, columns))
        width = max((len(row.request.ids) for row in joining), default=0)
        prefill = prompts.tokens(len(joining), width)
        return Reservation(count, columns, steps.tokens(count, columns), prefill)

    def columns(self, rows: Sequence[Row]) -> int:
        """Return the columns that rows need at most: their longest text and their largest tree."""
        trees = [row.schedule.largest for row in rows]
        if self.model.compiled:
            trees.append(self.model.tree)  # see `TreeModel.compile_steps`
        return max(row.request.max_length for row in rows) + max(map(len, trees))

    def fits(self, rows: Sequence[Row], joining: Sequence[Row]) -> bool:
        """Return True if rows may join those that decode."""
        return self.tokens is None or self.needed(rows, joining).tokens <= self.tokens

    def check(self, row: Row) -> None:
        """Check that a row fits alone.

        Raises:
            ValueError: it never fits.
        """
        if self.tokens is None:
            return
        need = self.needed([], [row]).tokens
        if need > self.tokens:
            raise ValueError(
                f"a text of {row.request.max_length} tokens and a tree of "
                f"{len(row.schedule.largest)} nodes take {need} tokens of the cache, which has "
                f"{self.tokens} (cache_tokens): shorten the prompt, ask for fewer new tokens, or "
                "raise cache_tokens"
            )

    def spare(self, cache: TreeCache, rows: Sequence[Row], joining: Sequence[Row]) -> int | None:
        """Return the tokens left over besides what these rows need; None for no bound."""
        if self.tokens is None:
            return None
        need, had = self.needed(rows, joining), cache.allocated
        most_rows = max(self._steps.rounded_rows(need.rows), had[0])
        columns = self._steps.rounded(need.columns) if need.rows else 0
        return self.tokens - need.prefill - most_rows * max(columns, had[1])

    def prepare(
        self, cache: TreeCache, rows: Sequence[Row], joining: Sequence[Row], prefixes: Prefixes
    ) -> TreeCache:
        """Make room in the cache that decodes for rows to join; return a cache to prefill them.

        Prefixes give way where rows need their memory.
        """
        self._read_model()
        need = self.needed(rows, joining)
        most = None
        if self.tokens is not None:
            prefixes.limit(self.tokens - need.tokens)
            most = self.tokens - need.prefill - prefixes.tokens
        cache.limit(need.rows, need.columns, most)
        width = max(len(row.request.ids) for row in joining)
        return self.model.new_cache(need.columns if alone(rows, joining) else width)


def alone(rows: Sequence[Row], joining: Sequence[Row]) -> bool:
    """Return True if a single row is prefilled and none decodes."""
    return not rows and len(joining) == 1


def bytes_per_token(model: TreeModel) -> int:
    """Return the bytes that a token takes in the cache, in all layers.

    The model runs one token for this, as architectures differ in what they keep.
    """
    with model.lock, torch.inference_mode():
        model.refresh()
        cache, token = model.new_cache(), torch.zeros(1, 1, dtype=torch.long, device=model.device)
        model.prefill(token, torch.ones_like(token), cache)
        return sum(each.shape[1] * each.shape[3] * each.element_size() for each in cache.states)
