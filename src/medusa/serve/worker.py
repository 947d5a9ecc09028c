"""The one thread that steps the engine; its events cross to asyncio once a step."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from enum import IntEnum

import torch

from ..core.engine import Engine
from ..core.request import Event, Request, Row

logger = logging.getLogger(__name__)

MOST_FAULTS = 3
"""Decoding steps, or prefills, that fail one after the other before the worker gives up."""

SHORT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


class Status(IntEnum):
    """The state of a worker, which only rises.

    `RUNNING` takes requests, `FLUSHING` finishes those it has, `ABORTING` cancels them, and
    `STOPPED` has none.
    """

    RUNNING = 0
    FLUSHING = 1
    ABORTING = 2
    STOPPED = 3


class StepError(RuntimeError):
    """A decoding step failed, with all requests that took part in it."""


class WorkerError(RuntimeError):
    """The worker takes no more requests, or has died."""


Events = asyncio.Queue[Event | Exception]
"""Gets the events of requests, or the exception after which no more come."""
Observer = Callable[[Sequence[Event]], None]
"""Function that gets the events of each step, in the worker's thread."""


class Worker:
    """Steps an engine in a thread of its own.

    `submit` and `cancel` may be called in any thread, `start` and `stop` in that of the asyncio
    loop. A step that fails ends the requests which decode with an error, and the worker goes on
    with those that wait. After `MOST_FAULTS` such steps in a row it fails every request and stops.

    Args:
        engine: nobody else may step it.

    Attributes:
        observe: called with the events of every step. Its errors are logged and do no harm.
        status: see `Status`.
        fault: the exception that ended the worker; None while it works.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.observe: Observer = lambda events: None
        self.status = Status.RUNNING
        self.fault: BaseException | None = None
        self._wake, self._lock = threading.Event(), threading.Lock()
        self._queues: dict[int, Events] = {}  # by the identity of the request
        self._faults: Counter[str] = Counter()  # in a row, of each kind of step
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to step, for the asyncio loop that is running."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """True if the worker takes requests."""
        return self.status is Status.RUNNING and self.fault is None and self._thread.is_alive()

    @property
    def active(self) -> int:
        """Requests that have not ended, those that wait included."""
        return len(self._queues)

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return max(0, self.active - len(self.engine.rows))

    def submit(self, request: Request, events: Events) -> Row:
        """Add a request, whose events go to a queue; return its row.

        Raises:
            WorkerError: the server is shutting down, or the worker has died.
            ValueError: see `Engine.submit`.
        """
        # the queue first, because the first event may come before the engine returns the row
        self._queues[id(request)] = events
        try:
            row = self.engine.submit(request) if self.healthy else None
        except Exception:
            self._queues.pop(id(request), None)
            raise
        # once more: a worker that ended meanwhile may not have seen the queue
        if row is None or self.status is Status.STOPPED:
            self._queues.pop(id(request), None)
            raise WorkerError(self.reason)
        self._wake.set()
        return row

    @property
    def reason(self) -> str:
        """Why the worker takes no requests."""
        if self.fault is not None:
            return f"the engine failed: {self.fault or type(self.fault).__name__}"
        return "the server is shutting down"

    def cancel(self, row: Row) -> None:
        """End a request at the next step, unless it has ended; nobody gets its last events."""
        if self._queues.pop(id(row.request), None) is not None:
            self.engine.cancel(row.number)
            self._wake.set()

    def raise_to(self, status: Status) -> None:
        """Raise the status; a lower one changes nothing."""
        with self._lock:
            self.status = max(self.status, status)
        self._wake.set()

    async def stop(self, grace: float) -> None:
        """Finish the requests under way, cancel those that take longer, and end the thread.

        Args:
            grace: seconds to wait for the requests under way.
        """
        self.raise_to(Status.FLUSHING)
        await asyncio.to_thread(self._thread.join, grace)
        self.raise_to(Status.ABORTING)
        await asyncio.to_thread(self._thread.join)

    # --- in the worker's thread

    def _run(self) -> None:
        try:
            while self.status < Status.ABORTING:
                flushing = self.status is Status.FLUSHING  # before: nothing is submitted after it
                if not self.engine.idle:
                    self._deliver_later(self._step())
                elif flushing:
                    break
                else:
                    self._wake.wait()
                    self._wake.clear()
        except BaseException as error:
            self._die(error)
        finally:
            self._end()

    def _step(self) -> Sequence[Event]:
        """Step once. A step that fails ends its requests; the next one returns their events.

        Raises:
            Exception: what the last of too many steps raised.
        """
        try:
            events = self.engine.step()
        except Exception as error:
            self._count_fault("decode", error)
            self.engine.fail(StepError(f"the engine failed: {error or type(error).__name__}"))
            return []
        self._judge(events)
        try:
            self.observe(events)
        except Exception:
            logger.exception("the figures of a step were not counted")
        return events

    def _judge(self, events: Sequence[Event]) -> None:
        """Count a prefill that failed, and begin to count anew after steps that worked."""
        for each in events:
            if each.timing is not None:
                self._faults["decode" if each.timing.nodes else "prefill"] = 0
        # The engine itself ends the requests of a prefill that failed. Too little memory for one
        # prompt says nothing about the next.
        failed = (each.error for each in events if each.timing is None)
        found = (each for each in failed if each is not None and not isinstance(each, StepError))
        error = next(found, None)
        if error is not None and not isinstance(error, SHORT_OF_MEMORY):
            self._count_fault("prefill", error)

    def _count_fault(self, kind: str, error: Exception) -> None:
        self._faults[kind] += 1
        logger.error("a step failed (%s)", kind, exc_info=error)
        if self._faults[kind] == MOST_FAULTS:
            raise error

    def _deliver_later(self, events: Sequence[Event]) -> None:
        if events and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, events)

    def _die(self, error: BaseException) -> None:
        logger.critical("the engine stops, because it failed", exc_info=error)
        self.fault = error
        self.raise_to(Status.ABORTING)

    def _end(self) -> None:
        """Drop the requests that are left, and tell everybody who waits for them."""
        try:
            self.engine.check()
        except RuntimeError:
            logger.exception("the engine is not as it should be at its end")
        try:
            self.engine.close()
        except Exception:
            logger.exception("the engine did not close")
        self.raise_to(Status.STOPPED)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drop)

    # --- in the loop's thread

    def _deliver(self, events: Sequence[Event]) -> None:
        try:
            for event in events:
                self._deliver_one(event)
        except Exception as error:  # requests would wait for ever for events that are lost
            self._die(error)

    def _deliver_one(self, event: Event) -> None:
        key = id(event.row.request)
        queue = self._queues.get(key)
        if queue is not None:
            queue.put_nowait(event)
        if event.finish_reason is not None:
            self._queues.pop(key, None)

    def _drop(self) -> None:
        """Tell everybody who still waits that no events will come."""
        error = WorkerError(self.reason)
        while self._queues:
            _, queue = self._queues.popitem()
            queue.put_nowait(error)
