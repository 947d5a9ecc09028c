"""The clock and the interleaved order that every measurement of this project uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

Name = TypeVar("Name")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Timed(Generic[Result]):
    """The result of a call and the wall-clock seconds it took."""

    result: Result
    seconds: float


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work; does nothing on other devices."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Result], device: torch.device | None = None) -> Timed[Result]:
    """Call a function and measure its wall-clock time.

    Args:
        device: the device the call computes on. A GPU runs kernels after the call that queued them
            has returned, so its queue is drained before the clock starts and before it stops.
    """
    if device is not None:
        synchronize(device)
    started = time.perf_counter()
    result = call()
    if device is not None:
        synchronize(device)
    return Timed(result, time.perf_counter() - started)


def rotated(names: Sequence[Name], rounds: int, first: int = 0) -> Iterator[list[Name]]:
    """Yield the order of each round; every round starts one name later than the round before.

    Args:
        first: position of the name that starts the first round, modulo the number of names.
    """
    for number in range(rounds):
        shift = (first + number) % len(names)
        yield [*names[shift:], *names[:shift]]


def interleaved(
    calls: Mapping[Name, Callable[[], Result]], rounds: int, *, warm_up: int = 0, first: int = 0
) -> dict[Name, list[Result]]:
    """Call every function once a round, in a rotated order, and return its results by round.

    Alternatives are compared within one round, so that a machine that slows down for a while slows
    all of them. The rotation makes sure that none always runs right after the same other one.

    Args:
        calls: the alternatives to compare, by name.
        rounds: number of rounds whose results are returned.
        warm_up: number of rounds before those, whose results are dropped.
        first: position of the function that starts the first round that counts.
    """
    results: dict[Name, list[Result]] = {name: [] for name in calls}
    for order in rotated(list(calls), warm_up + rounds, first - warm_up):
        for name in order:
            results[name].append(calls[name]())
    return {name: returned[warm_up:] for name, returned in results.items()}


def paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratio of two measurements in each round.

    Raises:
        ValueError: the measurements have different numbers of rounds.
    """
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the smallest and the largest value."""
    return min(values), max(values)
