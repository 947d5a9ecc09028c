"""A client that keeps a number of streaming requests open at a server, and measures the answers.

The number of tokens is what a server reports as `usage`: a piece of a stream may hold several
tokens, or none.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

SILENCE = 600.0
"""Seconds after which a server that sends nothing has failed."""
END = "[DONE]"
"""The last event of a stream."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind a server, and how it is asked.

    Attributes:
        server: name of the program.
        method: name of its way of decoding.
        address: URL of the server, without the path /v1.
        model: the model's name at the server.
        fields: fields of the request's body besides the usual ones.
    """

    server: str
    method: str
    address: str
    model: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def body(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        """Return the body of a request for a greedy answer, streamed."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.fields,
        }


@dataclass(frozen=True)
class Answered:
    """An answer as its client saw it.

    Attributes:
        tokens: number of its tokens.
        first: seconds from the request to its first text.
        last: seconds from the request to the end of the stream.
    """

    tokens: int
    first: float
    last: float

    @property
    def per_token(self) -> float:
        """Seconds per token after the first."""
        return (self.last - self.first) / max(1, self.tokens - 1)


@dataclass(frozen=True)
class Load:
    """The answers to a set of requests, and the seconds that all of them took together."""

    answers: Sequence[Answered]
    seconds: float

    @property
    def tokens(self) -> int:
        """Number of tokens in all answers."""
        return sum(each.tokens for each in self.answers)

    def figures(self) -> dict[str, float]:
        """Return throughput and latencies, under the names of the published results.

        The time per token of an answer is the mean over its tokens after the first; percentiles are
        over answers.
        """
        each = sorted(1000 * answer.per_token for answer in self.answers)
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "ttft_ms": 1000 * statistics.median(answer.first for answer in self.answers),
            "itl_p50_ms": statistics.median(each),
            "itl_p95_ms": each[round(0.95 * (len(each) - 1))],
        }


def run_load(endpoint: Endpoint, prompts: Sequence[str], concurrency: int, max_tokens: int) -> Load:
    """Send prompts, of which `concurrency` are answered at any time; return the answers.

    Raises:
        RuntimeError: the server refuses a request, an answer fails, or it has no count of tokens.
    """
    return asyncio.run(_run_load(endpoint, prompts, concurrency, max_tokens))


async def _run_load(
    endpoint: Endpoint, prompts: Sequence[str], concurrency: int, max_tokens: int
) -> Load:
    free = asyncio.Semaphore(concurrency)
    # each request opens a connection: a server may close one just when it is used again
    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=0)
    async with httpx2.AsyncClient(timeout=SILENCE, limits=limits) as client:

        async def one(prompt: str) -> Answered:
            async with free:
                return await _ask(client, endpoint, endpoint.body(prompt, max_tokens))

        begin = time.perf_counter()
        answers = await asyncio.gather(*map(one, prompts))
        return Load(answers, time.perf_counter() - begin)


async def _ask(client: httpx2.AsyncClient, endpoint: Endpoint, body: dict[str, Any]) -> Answered:
    begin = time.perf_counter()
    first, tokens = None, None
    url = f"{endpoint.address}/v1/chat/completions"
    async with client.stream("POST", url, json=body) as response:
        if not response.is_success:
            text = (await response.aread())[:500].decode(errors="replace")
            raise RuntimeError(f"{url} refuses a request with {response.status_code}: {text}")
        async for line in response.aiter_lines():
            if not line.startswith("data:") or line.endswith(END):
                continue
            piece = json.loads(line[len("data:") :])
            if piece.get("error"):
                raise RuntimeError(f"{url} failed: {piece['error']}")
            if first is None and _has_text(piece):
                first = time.perf_counter() - begin
            if piece.get("usage"):
                tokens = piece["usage"]["completion_tokens"]
    last = time.perf_counter() - begin
    if not tokens:
        raise RuntimeError(f"{url} sent no usage in its stream, or an answer without tokens")
    return Answered(tokens, last if first is None else first, last)


def _has_text(piece: dict[str, Any]) -> bool:
    return any((each.get("delta") or {}).get("content") for each in piece.get("choices") or ())
