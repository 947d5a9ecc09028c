"""`python -m benchmarks.serving_soak`: `medusa serve` under rough use, for a long time.

Clients of all kinds ask the server of the embedded model at once: answers read to their end, as
streams and whole, in all protocols; streams read slowly; clients that leave in the middle; requests
that are wrong; bursts. Then `--requests` short requests follow one another. No request may be lost,
every stream must end properly, memory must stay flat, and the server's own check of its rows and
caches must find nothing when it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from medusa import demo

from .harness import argument_parser, new_report, parse_arguments, publish_for_device
from .servers import Program, end, medusa_server, started

ENDS = {
    "chat/completions": ("[DONE]",),
    "completions": ("[DONE]",),
    "responses": ("response.completed", "response.incomplete"),
    "messages": ("message_stop",),
}
"""Endpoints, and how their streams end: the last data, or the type of the last event."""
BURST = 40
"""Requests of a burst, more than the server decodes at a time."""
ROWS = 16
"""Rows of the server."""
CACHE = 0.25
"""GiB of the server's caches, few enough to be full soon."""
SAMPLE = 1.0
"""Seconds between two looks at the server's memory."""
MOST_GROWTH = 0.02
"""Share by which memory may grow after the first quarter of the run."""
SHOWN = 20
"""Faults that are printed."""
WRONG: Sequence[bytes] = (
    b"{",
    b'{"model": "demo"}',
    b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "demo", "messages": [{"role": "user", "content": "x"}], "unknown": 1}',
    b'{"model": "demo", "messages": [{"role": "user", "content": "x"}], "temperature": 9}',
)


@dataclass
class Soak:
    """Clients of a server, and what became of their requests.

    Attributes:
        counts: number of requests that went as they should, by their kind.
        faults: what went otherwise.
    """

    client: httpx2.AsyncClient
    prompts: Sequence[str]
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    async def run(self, seconds: float, clients: int) -> None:
        """Send requests of all kinds from some clients for a time."""
        last = time.monotonic() + seconds
        kinds: list[Callable[[], Awaitable[None]]] = [
            self.whole,
            self.streamed,
            self.slow,
            self.leaving,
            self.giving_up,
            self.wrong,
        ]

        async def ask() -> None:
            while time.monotonic() < last:
                kind = self.burst if self.chance.random() < 0.01 else self.chance.choice(kinds)
                await self.counted(kind)

        await asyncio.gather(*(ask() for _ in range(clients)))

    async def counted(self, kind: Callable[[], Awaitable[None]]) -> None:
        """Make requests of a kind; note a fault if they did not go as they should."""
        try:
            await kind()
            self.counts[kind.__name__] += 1
        except Exception as error:
            self.faults.append(f"{kind.__name__}: {type(error).__name__} {error}"[:500])

    def body(self, path: str, tokens: int, stream: bool = False) -> dict[str, Any]:
        """Return the body of a request to an endpoint, with a prompt and sampling by chance."""
        prompt = self.chance.choice(self.prompts)
        words: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        if path == "completions":
            words = {"prompt": prompt}
        elif path == "responses":
            words = {"input": prompt}
        limit = "max_output_tokens" if path == "responses" else "max_tokens"
        temperature = self.chance.choice([0, 0.7, 1])
        medusa = {"enabled": self.chance.random() < 0.8}
        own = {"temperature": temperature, limit: tokens, "stream": stream, "medusa": medusa}
        return {"model": "demo", **words, **own}

    async def whole(self) -> None:
        """Read an answer whole."""
        path = self.chance.choice(list(ENDS))
        body = self.body(path, self.chance.randint(1, 150))
        reply = await self.client.post(f"/v1/{path}", json=body)
        usage = reply.raise_for_status().json()["usage"]
        assert usage.get("completion_tokens", usage.get("output_tokens")) > 0, reply.text

    async def streamed(self, pause: float = 0.0) -> None:
        """Read a stream to its end."""
        path = self.chance.choice(list(ENDS))
        body = self.body(path, self.chance.randint(1, 150), stream=True)
        last = ""
        async for data in self._events(path, body):
            last = data
            await asyncio.sleep(pause)
        kind = json.loads(last)["type"] if last.startswith("{") else last
        assert kind in ENDS[path], f"{path} ended with {last!r}"

    async def slow(self) -> None:
        """Read a stream slowly."""
        await self.streamed(pause=0.05)

    async def leaving(self) -> None:
        """Leave in the middle of a stream."""
        path = self.chance.choice(list(ENDS))
        left = self.chance.randint(1, 5)
        async for _ in self._events(path, self.body(path, 400, stream=True)):
            left -= 1
            if not left:
                break

    async def giving_up(self) -> None:
        """Close the connection before the answer has come."""
        path = self.chance.choice(list(ENDS))
        patience = self.chance.uniform(0.01, 0.3)
        with contextlib.suppress(httpx2.TimeoutException):
            await self.client.post(f"/v1/{path}", json=self.body(path, 400), timeout=patience)

    async def wrong(self) -> None:
        """Send what the server must refuse."""
        reply = await self.client.post(
            "/v1/chat/completions",
            content=self.chance.choice(WRONG),
            headers={"content-type": "application/json"},
        )
        assert reply.status_code in (400, 404), reply.text
        assert reply.json()["error"]["message"]

    async def burst(self) -> None:
        """Send many short requests at once."""
        body = self.body("chat/completions", 8)
        replies = await asyncio.gather(
            *(self.client.post("/v1/chat/completions", json=body) for _ in range(BURST))
        )
        for reply in replies:
            reply.raise_for_status()

    async def short(self) -> None:
        """Read a short answer."""
        reply = await self.client.post(
            "/v1/chat/completions", json=self.body("chat/completions", 4)
        )
        assert reply.raise_for_status().json()["usage"]["completion_tokens"] > 0

    async def _events(self, path: str, body: dict[str, Any]) -> AsyncIterator[str]:
        async with self.client.stream("POST", f"/v1/{path}", json=body) as reply:
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                if line.startswith("data: "):
                    yield line[len("data: ") :]


class Memory:
    """The memory of a process over time, in MiB."""

    def __init__(self, process: int):
        self._status = Path(f"/proc/{process}/status")
        self.values: list[float] = []

    async def watch(self) -> None:
        """Look at it for ever."""
        while True:
            line = next(
                line for line in self._status.read_text().splitlines() if line.startswith("VmRSS:")
            )
            self.values.append(int(line.split()[1]) / 1024)
            await asyncio.sleep(SAMPLE)

    @property
    def growth(self) -> float:
        """The last quarter's median as a share of the second quarter's, minus 1."""
        quarter = max(1, len(self.values) // 4)
        early = statistics.median(self.values[quarter : 2 * quarter] or self.values)
        return statistics.median(self.values[-quarter:]) / early - 1

    def figures(self) -> dict[str, float]:
        """Return its end and its growth."""
        return {"mebibytes": round(self.values[-1], 1), "growth": round(self.growth, 4)}


async def watched(server: Program, work: Awaitable[None]) -> dict[str, float]:
    """Do some work; return what it did to the server's memory."""
    memory = Memory(server.process.pid)
    task = asyncio.ensure_future(memory.watch())
    try:
        await work
    finally:
        task.cancel()
    return memory.figures()


async def soak(server: Program, options: argparse.Namespace) -> dict[str, Any]:
    """Use a server roughly, then with many short requests; return the figures."""
    prompts = [task.prompt for task in demo.calibration_tasks(200)]
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=server.address, timeout=120, limits=limits) as client:
        rough = Soak(client, prompts, random.Random(options.seed))
        memory = await watched(server, rough.run(60 * options.minutes, options.clients))
        report = {"rough": {"requests": dict(rough.counts), "memory": memory}}
        short = Soak(client, prompts, random.Random(options.seed))

        async def in_a_row() -> None:
            for _ in range(options.requests):
                await short.counted(short.short)

        begin = time.perf_counter()
        memory = await watched(server, in_a_row())
        seconds = time.perf_counter() - begin
        report["short"] = {"requests": dict(short.counts), "seconds": seconds, "memory": memory}
        health = (await client.get("/health")).json()
    return {**report, "health": health, "faults": [*rough.faults, *short.faults]}


def faults_of(report: dict[str, Any], status: int, printed: str) -> list[str]:
    """Return what went wrong in a run.

    Args:
        status: the server's exit status.
        printed: the server's log.
    """
    found = list(report["faults"])
    for part in ("rough", "short"):
        if (growth := report[part]["memory"]["growth"]) > MOST_GROWTH:
            found.append(f"{part}: memory grew by {growth:.1%}")
    health = report["health"]
    if (health["status"], health["active"], health["waiting"]) != ("ok", 0, 0):
        found.append(f"the server was not idle at the end: {health}")
    if status:
        found.append(f"the server ended with status {status}")
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return found + [str(line) for line in lines if line["level"] in ("error", "critical")]


def table_of(report: dict[str, Any]) -> Table:
    """Return the numbers of requests of each kind, and memory."""
    table = Table("kind", "requests", "memory at the end (MiB)", "growth")
    for part in ("rough", "short"):
        memory = report[part]["memory"]
        for kind, count in sorted(report[part]["requests"].items()):
            table.add_row(kind, str(count), str(memory["mebibytes"]), f"{memory['growth']:+.1%}")
    return table


def main() -> None:
    """Run the benchmark; the exit status is 1 if anything went wrong."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="minutes of rough use (default: 15)"
    )
    parser.add_argument(
        "--requests", type=int, default=10_000, help="short requests in a row (default: 10000)"
    )
    parser.add_argument("--clients", type=int, default=24, help="clients at once (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the clients (default: 0)")
    options = parse_arguments(parser)
    with started(
        medusa_server(["demo", "--cache-gib", str(CACHE)], ROWS), options.threads
    ) as server:
        found = asyncio.run(soak(server, options))
        faults = faults_of(found, end(server.process), server.printed)
    report = new_report(clients=options.clients, **{**found, "faults": faults})
    publish_for_device(options, report, "serving-soak", table_of(report))
    for fault in faults[:SHOWN]:
        Console().print(fault, style="red", markup=False)
    if faults[SHOWN:]:
        Console().print(f"and {len(faults) - SHOWN} further faults, in the file", style="red")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
