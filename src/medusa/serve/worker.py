"""The one thread that steps the engine; its events cross to asyncio once a step."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial

from ..core.engine import Engine
from ..core.request import Event, Request, Row

logger = logging.getLogger(__name__)

MOST_FAULTS = 3
"""Steps that may fail one after the other before the worker gives up."""


class Status(IntEnum):
    """The state of a worker, which only rises.

    `RUNNING` takes requests, `FLUSHING` finishes those it has, `ABORTING` cancels them, and
    `STOPPED` has none.
    """

    RUNNING = 0
    FLUSHING = 1
    ABORTING = 2
    STOPPED = 3


class WorkerError(RuntimeError):
    """The worker takes no more requests, or has died."""


Events = asyncio.Queue[Event | Exception]
"""Gets the events of requests, or the exception after which no more come."""
Observer = Callable[[Sequence[Event]], None]
"""Function that gets the events of each step, in the worker's thread."""


class Worker:
    """Steps an engine in a thread of its own.

    `submit`, `cancel` and `stop` are called in the thread of the asyncio loop. A step that fails
    ends the requests which decode with an error, and the worker goes on with those that wait. After
    `MOST_FAULTS` such steps in a row it fails every request and stops.

    Args:
        engine: nobody else may step it.
        observe: called with the events of every step.

    Attributes:
        status: see `Status`.
        fault: the exception that ended the worker; None while it works.
    """

    def __init__(self, engine: Engine, observe: Observer = lambda events: None):
        self.engine, self._observe = engine, observe
        self.status = Status.RUNNING
        self.fault: BaseException | None = None
        self._wake = threading.Event()
        self._queues: dict[int, Events] = {}
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
        if not self.healthy:
            raise WorkerError(self.reason)
        row = self.engine.submit(request)
        self._queues[row.number] = events
        self._wake.set()
        return row

    @property
    def reason(self) -> str:
        """Why the worker takes no requests."""
        if self.fault is not None:
            return f"the engine failed: {self.fault}"
        return "the server is shutting down"

    def cancel(self, row: Row) -> None:
        """End a request at the next step, unless it has ended; nobody gets its last events."""
        if self._queues.pop(row.number, None) is not None:
            self.engine.cancel(row.number)
            self._wake.set()

    def raise_to(self, status: Status) -> None:
        """Raise the status; a lower one changes nothing."""
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
        faults = 0
        try:
            while self.status < Status.ABORTING:
                if self.engine.idle:
                    if self.status is Status.FLUSHING:
                        break
                    self._wake.wait()
                    self._wake.clear()
                    continue
                try:
                    events = self.engine.step()
                    faults = 0
                except Exception as error:
                    faults += 1
                    logger.exception("a step failed")
                    if faults == MOST_FAULTS:
                        raise
                    self.engine.fail(error)
                    continue
                self._observe(events)
                self._send(events)
        except BaseException as error:
            self.fault = error
        finally:
            self._end()

    def _send(self, events: Sequence[Event]) -> None:
        if events and self._loop is not None:
            self._loop.call_soon_threadsafe(self._deliver, events)

    def _end(self) -> None:
        """Fail or cancel the requests that are left."""
        self.engine.close()
        self.status = Status.STOPPED
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(partial(self._drop, WorkerError(self.reason)))

    # --- in the loop's thread

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            queue = self._queues.get(event.request)
            if queue is not None:
                queue.put_nowait(event)
            if event.finish_reason is not None:
                self._queues.pop(event.request, None)

    def _drop(self, error: Exception) -> None:
        """Tell everybody who still waits that no events will come."""
        for queue in self._queues.values():
            queue.put_nowait(error)
        self._queues.clear()
