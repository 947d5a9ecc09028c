"""Figures of a server for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..core.request import Event
from .worker import Worker

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds of the buckets of durations."""


class Metrics:
    """Counters and histograms, in a registry of their own.

    The counters of candidates have the names of vLLM's, so that its dashboards and benchmarks read
    them.
    """

    def __init__(self, heads: int):
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "medusa_requests", "Requests that have ended", ["reason"], registry=registry
        )
        self._prompt = Counter("medusa_prompt_tokens", "Tokens of prompts", registry=registry)
        self._new = Counter("medusa_generation_tokens", "Tokens of answers", registry=registry)
        self._step = Histogram(
            "medusa_step_seconds", "Duration of a step", buckets=SECONDS, registry=registry
        )
        self._first = Histogram(
            "medusa_time_to_first_token_seconds",
            "Time from a request's arrival to its first token",
            buckets=SECONDS,
            registry=registry,
        )
        self._token = Histogram(
            "medusa_time_per_output_token_seconds",
            "Time of a step divided by the tokens that it gave a request",
            buckets=SECONDS,
            registry=registry,
        )
        speculation = "vllm:spec_decode_num"
        self._drafts = Counter(f"{speculation}_drafts", "Trees verified", registry=registry)
        self._candidates = Counter(
            f"{speculation}_draft_tokens", "Candidates verified", registry=registry
        )
        self._accepted = Counter(
            f"{speculation}_accepted_tokens", "Candidates accepted", registry=registry
        )
        per_position = Counter(
            f"{speculation}_accepted_tokens_per_pos",
            "Candidates accepted, by the head that proposed them",
            ["position"],
            registry=registry,
        )
        self._positions = [per_position.labels(str(head)) for head in range(heads)]

    def watch(self, worker: Worker) -> None:
        """Report what a worker does now, whenever the figures are read."""
        gauges = {
            "medusa_requests_running": ("Requests that decode", lambda: len(worker.engine.rows)),
            "medusa_requests_waiting": ("Requests that wait", lambda: worker.waiting),
            "medusa_cache_tokens": (
                "Tokens whose keys and values are in the cache",
                lambda: sum(len(row.ids) for row in list(worker.engine.rows)),
            ),
        }
        for name, (text, read) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(read)

    def observe(self, events: Sequence[Event]) -> None:
        """Count the events of a step."""
        for timing in {id(each.timing): each.timing for each in events}.values():
            if timing is not None and timing.nodes:
                self._step.observe(timing.seconds)
        for event in events:
            self._observe(event)

    def _observe(self, event: Event) -> None:
        row, timing, count = event.row, event.timing, len(event.tokens)
        self._new.inc(count)
        if timing is not None and not timing.nodes:
            self._prompt.inc(len(row.request.ids))
            self._first.observe(time.perf_counter() - row.submitted)
        elif timing is not None and count:
            self._token.observe(timing.seconds / count)
        if event.nodes > 1 and count:
            self._drafts.inc()
            self._candidates.inc(event.nodes - 1)
            self._accepted.inc(event.accepted)
            for position in self._positions[: event.accepted]:
                position.inc()
        if event.finish_reason is not None:
            self._requests.labels(event.finish_reason).inc()

    def text(self) -> bytes:
        """Return all figures in Prometheus' format."""
        return generate_latest(self.registry)
