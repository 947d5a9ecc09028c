"""Threads that compute with torch on a CPU.

OpenMP gives each thread that computes a team of its own, which lives as long as that thread. While
there are more threads in all teams than processors, GNU's OpenMP puts a team to sleep between any
two operators, and small operators take twice their time. So of the threads that compute, only one
should live on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_passing_thread(call: Callable[[], T]) -> T:
    """Return what a function returns, which runs in a thread that ends with it.

    An interrupt while it runs does not wait for it.

    Raises:
        Exception: raised by the function.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        return future.result()
    finally:
        if future.done():
            thread.join()
