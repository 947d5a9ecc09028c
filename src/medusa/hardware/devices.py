"""Memory bandwidth and matrix rate: makers' figures of GPUs, and those measured on this machine."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .operators import HALF, Work
from .provenance import device_name, this_device
from .timing import timed

STREAM_BYTES = 1 << 28
"""Bytes that are read to measure the bandwidth: more than any cache holds."""
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the square matrices that measure the matrix rate."""
ROUNDS = 7
"""Measurements of each figure, of which the best counts: a roof is what can be reached."""


@dataclass(frozen=True)
class Device:
    """A device as the roofline model sees it.

    Attributes:
        bandwidth: bytes a second between memory and processor.
        peak: floating-point operations a second of dense matrix products in half precision; on this
            machine, in the dtype that was measured.
        memory: bytes of memory.
        size: bytes of a number.
    """

    name: str
    bandwidth: float
    peak: float
    memory: float
    size: float = HALF

    @property
    def ridge(self) -> float:
        """Operational intensity from which on products are bound by computing, not by memory."""
        return self.peak / self.bandwidth

    def attainable(self, intensity: float) -> float:
        """Return the operations a second that the roof allows at an operational intensity."""
        return min(self.peak, self.bandwidth * intensity)

    def seconds(self, work: Work) -> float:
        """Return the least time of a product."""
        return max(work.flops / self.peak, work.bytes(self.size) / self.bandwidth)


def _gpu(name: str, gigabytes_a_second: float, teraflops: float, gigabytes: float) -> Device:
    return Device(name, gigabytes_a_second * 1e9, teraflops * 1e12, gigabytes * 1e9)


DEVICES = {
    device.name: device
    for device in (
        _gpu("A100-80GB-PCIe", 1935, 312, 80),
        _gpu("A40", 696, 149.7, 48),
        _gpu("A6000", 768, 154.8, 48),
        _gpu("H100", 3350, 989.4, 80),
        _gpu("H200", 4800, 989.4, 141),
        _gpu("RTX-4090", 1008, 165.2, 24),
    )
}
"""Makers' figures, without sparsity: bfloat16 or float16 products that accumulate in float32. The
H100 and the H200 are the SXM versions."""
HERE = "here"
"""Name of the device on which the command runs."""


def find_device(name: str, dtype: torch.dtype = torch.bfloat16) -> Device:
    """Return a device by its name; "here" is measured.

    Raises:
        ValueError: there is no such device; lists the names.
    """
    if name == HERE:
        return measured_device(dtype)
    by_lower = {each.lower(): device for each, device in DEVICES.items()}
    if name.lower() not in by_lower:
        raise ValueError(f"unknown device {name}: take one of {', '.join([*DEVICES, HERE])}")
    return by_lower[name.lower()]


def measured_device(dtype: torch.dtype) -> Device:
    """Measure the memory bandwidth and the matrix rate of this machine's GPU or processor."""
    kind = this_device()
    return Device(
        device_name(kind), bandwidth(kind), matrix_rate(kind, dtype), memory(kind), dtype.itemsize
    )


def bandwidth(device: torch.device) -> float:
    """Return the bytes a second at which a large vector is read."""
    data = torch.ones(STREAM_BYTES // 4, device=device)
    return STREAM_BYTES / best_seconds(data.sum, device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of a product of large square matrices."""
    size = MATRIX_SIZE[device.type]
    left = torch.randn(size, size, device=device, dtype=torch.float32).to(dtype)
    right = left.clone()
    return 2 * size**3 / best_seconds(partial(torch.matmul, left, right), device)


def memory(device: torch.device) -> float:
    """Return the bytes of a GPU's or the machine's memory."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def best_seconds(call: Callable[[], Any], device: torch.device, rounds: int = ROUNDS) -> float:
    """Return the shortest time of a call in some rounds, after one that does not count."""
    call()
    return min(timed(call, device).seconds for _ in range(rounds))


def median_seconds(call: Callable[[], Tensor], device: torch.device, rounds: int) -> float:
    """Return the median time of a call in some rounds, after one that does not count."""
    call()
    return statistics.median(timed(call, device).seconds for _ in range(rounds))
