"""Tests of `medusa serve` as a process that signals end."""

import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import httpx2
import pytest


@pytest.fixture
def served():
    """A process that serves the embedded model, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "medusa.cli", "serve", "demo", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            end = time.monotonic() + 60
            while not reachable(address):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            yield process, address
        finally:
            process.kill()


def reachable(address):
    try:
        return httpx2.get(f"{address}/health").status_code == 200
    except httpx2.TransportError:
        return False


def stream(address):
    body = {"model": "demo", "prompt": "SELECT", "max_tokens": 400, "stream": True, "n": 8}
    body |= {"temperature": 0, "medusa": {"enabled": False}}
    return httpx2.stream("POST", f"{address}/v1/completions", json=body, timeout=60)


@pytest.mark.slow
def test_a_signal_lets_a_stream_finish_and_refuses_new_requests(served):
    process, address = served
    with stream(address) as reply:
        lines = reply.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert not reachable(address)
        assert list(lines)[-2] == "data: [DONE]"
    assert process.wait(20) == 0


@pytest.mark.slow
def test_a_second_signal_ends_a_stream_at_once(served):
    process, address = served
    with stream(address) as reply:
        lines = reply.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        with suppress(httpx2.HTTPError):  # the connection may break before the stream has ended
            assert len(list(lines)) < 8 * 400
        assert process.wait(5) == 0
