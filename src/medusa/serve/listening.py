"""Runs the application over HTTP until a signal ends it."""

from __future__ import annotations

import asyncio
from types import FrameType

import uvicorn
from fastapi import FastAPI

from .server import GRACE, Server
from .worker import Status

MARGIN = 5.0
"""Seconds that streams have to send their last events, after requests were cancelled."""

KEEP_ALIVE = 75
"""Seconds that a connection may be idle.

Clients close theirs sooner. If the server were first, a request could be on its way meanwhile, and
would be lost.
"""


class Listener(uvicorn.Server):
    """Serves an application.

    The first signal refuses new requests and lets those under way finish, for `GRACE` seconds at
    most. A second signal ends them at once.
    """

    def __init__(self, app: FastAPI, host: str, port: int):
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=int(GRACE + MARGIN),
        )
        super().__init__(config)
        self._server: Server = app.state.server
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Start the application, then listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the server because of a signal; uvicorn's own would exit with the signal's status."""
        self.force_exit = self.should_exit
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        worker = self._server.worker
        worker.raise_to(Status.ABORTING if self.force_exit else Status.FLUSHING)
        if not self.force_exit:
            asyncio.get_running_loop().call_later(GRACE, worker.raise_to, Status.ABORTING)
