"""Peak memory of this process, and of a GPU during a call."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")
STATUS = Path("/proc/self/status")
"""File in which Linux describes this process."""


def peak_bytes() -> int | None:
    """Return the peak memory of this process in bytes; None where the system does not tell it.

    `getrusage` would give that of the process that started this one, if it was larger.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()) if STATUS.is_file() else None
    return None if found is None else 1024 * int(found[1])


def with_device_peak(device: torch.device, call: Callable[[], Result]) -> tuple[Result, int | None]:
    """Return a call's result, and the peak memory allocated on the GPU during it.

    What was allocated before the call counts as well. The peak is None on other devices.
    """
    if device.type != "cuda":
        return call(), None
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    return result, torch.cuda.max_memory_allocated(device)
