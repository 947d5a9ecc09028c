"""`Server`: a model, the worker that decodes with it, and what the endpoints share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from ..core.budget import bytes_per_token
from ..core.engine import Engine
from ..loading import MedusaModel
from .answers import Answerer, AnswerError
from .errors import ApiError, of_validation
from .events import of_failure, streamed
from .fields import Body, Sampling
from .metrics import Metrics
from .reply import Reply
from .settings import ServerSettings
from .worker import Worker, WorkerError

GRACE = 30.0
"""Seconds that requests under way have to end when the server stops."""
T = TypeVar("T")
R = TypeVar("R", bound=Body)


class Server:
    """Serves a model. `lifespan` starts and stops its worker.

    Args:
        model: decodes the answers; nobody else should run it meanwhile.
        tokenizer: the model's.
    """

    def __init__(
        self, model: MedusaModel, tokenizer: PreTrainedTokenizerBase, settings: ServerSettings
    ):
        self.settings, self.started = settings, int(time.time())
        self.metrics = Metrics(model.heads.config.num_heads)
        self.worker = Worker(engine_of(model, settings))
        self.metrics.watch(self.worker)
        self.answerer = Answerer(model, tokenizer, self.worker, settings)
        # one thread, because tokenizers do not bear several
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._preparing = 0  # answers whose requests that thread reads, or will read

    @asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        """Run the worker; answer a few tokens first, so that compiling delays no request."""
        self.worker.start()
        try:
            for count in (1, 2):  # there are programs for one request, and for several
                first = Sampling(model=self.settings.name, max_tokens=16, temperature=0, n=count)
                async for _piece in self.answerer.answer([0], first):
                    pass
            self.worker.observe = self.metrics.observe
            yield
        finally:
            await self.worker.stop(GRACE)
            self._preparer.shutdown(wait=False)

    async def reply(
        self, begin: Callable[[Answerer, R], Reply], wanted: R, request: Request
    ) -> Response:
        """Answer a request, in one response or as a stream.

        Args:
            begin: begins to answer in the form of a protocol.

        Raises:
            ApiError: the request cannot be served.
        """

        self._check_room(wanted.count)
        self._preparing += wanted.count
        try:
            reply = await self.begun(begin, wanted)
        finally:
            self._preparing -= wanted.count
        if wanted.stream:
            return streamed(
                reply.events(),
                reply.answers.cancel,
                reply.failed,
                self.settings.keep_alive,
                reply.ping,
            )
        try:
            return JSONResponse(await unless_gone(request, reply.whole()))
        except (AnswerError, WorkerError) as error:
            raise of_failure(error) from error
        finally:
            reply.answers.cancel()

    async def begun(self, begin: Callable[[Answerer, R], T], wanted: R) -> T:
        """Return what a function of a request returns, or makes the model begin.

        It runs in a thread of its own, because long prompts and large schemas take their time.

        Raises:
            ApiError: the request names another model, or the function failed.
        """
        name, loop = self.settings.name, asyncio.get_running_loop()
        if wanted.model != name:
            raise ApiError(
                404,
                f"there is no model {wanted.model!r} here, only {name!r}",
                "model",
                "model_not_found",
            )
        try:
            return await loop.run_in_executor(self._preparer, begin, self.answerer, wanted)
        except ValidationError as error:
            raise of_validation(error.errors()) from error
        except (ValueError, ImportError) as error:
            raise ApiError(400, str(error)) from error
        except WorkerError as error:
            raise of_failure(error) from error

    def _check_room(self, count: int) -> None:
        """Refuse a request that finds no place."""
        most = self.settings.max_rows + self.settings.max_waiting
        if count > most:
            raise ApiError(400, f"n: this server gives at most {most} answers at a time", "n")
        taken = self._preparing + self.worker.active
        if self.worker.healthy and taken + count > most:
            raise ApiError(
                429,
                f"{taken} requests run or wait, and this server takes {most}: try again later",
                headers={"Retry-After": "1"},
            )

    def health(self) -> JSONResponse:
        """Return whether the server takes requests, and how many it has."""
        worker = self.worker
        if not worker.healthy:
            status = worker.status.name.lower()
            return JSONResponse({"status": status, "reason": worker.reason}, 503)
        return JSONResponse(
            {
                "status": "ok",
                "model": self.settings.name,
                "tree_nodes": len(self.answerer.model.tree),
                "active": len(worker.engine.rows),
                "waiting": worker.waiting,
            }
        )

    def models(self) -> dict[str, Any]:
        """Return the list of the one model."""
        model = {"id": self.settings.name, "object": "model", "created": self.started}
        return {"object": "list", "data": [{**model, "owned_by": "medusa"}]}


def engine_of(model: MedusaModel, settings: ServerSettings) -> Engine:
    """Return an engine whose caches keep to the settings' memory."""
    if settings.cache_bytes is None:
        return Engine(model, settings.max_rows, frozen=True)
    tokens = settings.cache_bytes // bytes_per_token(model)
    prefixes = int(tokens * settings.prefix_share)
    return Engine(
        model, settings.max_rows, cache_tokens=tokens, prefix_tokens=prefixes, frozen=True
    )


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return what some work gives, or stop it once the client has gone.

    Raises:
        ApiError: the client has gone; nobody will read it.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client closed the connection")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def disconnected(request: Request) -> None:
    """Return when the client of a request has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
