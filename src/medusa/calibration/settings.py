"""Settings of a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.model import TreeModel
from .latency import SIZES

PromptIds = Sequence[Sequence[int]]
"""Token ids of prompts."""


@dataclass(frozen=True)
class CalibrationSettings:
    """Limits of the search for a tree, and the conditions steps are timed under.

    Args:
        max_nodes: maximum tree size searched, the root included.
        num_heads: use only this many of the first heads; None uses all.
        contexts: context lengths in tokens at which steps are timed; None takes two from the
            recorded texts (see `usual_contexts`).
        batch_size: rows decoded at once.
        rounds: how often each tree size is timed at each context length.
        ranks: how many of each head's best tokens are recorded.
        compiled: time compiled steps, or uncompiled ones; None times both where the model can be
            compiled, and keeps the faster.
    """

    max_nodes: int = 64
    num_heads: int | None = None
    contexts: tuple[int, ...] | None = None
    batch_size: int = 1
    rounds: int = 20
    ranks: int = 32
    compiled: bool | None = None

    def check(self, model: TreeModel) -> None:
        """Check that the model fits the settings.

        Raises:
            ValueError: the model has fewer heads than `num_heads`, or too few positions for a
                context and the steps timed after it.
        """
        heads, positions = model.heads.config.num_heads, model.positions.trained
        if self.num_heads is not None and self.num_heads > heads:
            raise ValueError(
                f"{self.num_heads} heads are asked for (--heads) and the model has {heads}"
            )
        for context in self.contexts or ():
            if positions is not None and context + self.timed_tokens(heads) > positions:
                raise ValueError(
                    f"a context of {context} tokens (--context) and the steps to time do not fit "
                    f"into the {positions} positions of the model: use at most "
                    f"{max(0, positions - self.timed_tokens(heads))}"
                )

    def timed_tokens(self, heads: int) -> int:
        """Return the most tokens that one round of timed steps, one of each tree size, can add."""
        sizes = [size for size in (1, *SIZES, self.max_nodes) if size <= self.max_nodes]
        return 2 + len(set(sizes)) * (1 + heads)


DEFAULT_SETTINGS = CalibrationSettings()
