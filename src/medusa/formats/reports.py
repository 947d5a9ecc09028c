"""transformers' report of loading a model: none is due for heads among the model's tensors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from .layouts import LAYOUTS

LOGGER = "transformers.modeling_utils"
PREFIXES = tuple(layout.prefix for layout in LAYOUTS if layout.prefix)


@contextmanager
def heads_expected() -> Iterator[None]:
    """Leave out a report that lists nothing but heads, which are read by other code."""
    logger, quiet = logging.getLogger(LOGGER), _OtherTensors()
    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)


class _OtherTensors(logging.Filter):
    """Lets all messages pass, except for a table of tensors that are all heads'."""

    def filter(self, record: logging.LogRecord) -> bool:
        lines = record.getMessage().splitlines()
        rows = [line for line in lines if "|" in line and not line.startswith("Key")]
        return not rows or not all(row.startswith(PREFIXES) for row in rows)
