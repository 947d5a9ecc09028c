"""Programs that serve a model over OpenAI's protocol, started for a benchmark."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

MOST_SECONDS = 300.0
"""Seconds in which a server must be ready."""
GRACE = 40.0
"""Seconds in which a server must end after it was asked to."""


def program(name: str) -> str | None:
    """Return the path of a program that is beside this Python, on the PATH, or given as a path.

    None if there is none.
    """
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Program:
    """A server that runs.

    Attributes:
        address: its URL.
        log: file of what it prints.
    """

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def printed(self) -> str:
        """The text that it has printed so far."""
        return self.log.read_text(errors="replace")


@contextmanager
def started(command: Sequence[str], threads: int) -> Iterator[Program]:
    """Run a server that takes `--port` and answers at /health, and end it.

    Args:
        threads: CPU threads that torch may use in it.

    Raises:
        RuntimeError: the server ends, or is not ready in time; holds what it printed last.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=log, stderr=log, env=environment
        )
        found = Program(address, process, Path(log.name))
        try:
            if not _ready(process, address):
                text = found.printed[-2000:]
                raise RuntimeError(f"{' '.join(command)} did not start:\n{text}")
            yield found
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> int:
    """Ask a process to end, and kill it if it does not; return its exit status."""
    process.terminate()
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _ready(process: subprocess.Popen[bytes], address: str) -> bool:
    """Wait for a server; return False if it has ended or takes too long."""
    end = time.monotonic() + MOST_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx2.get(f"{address}/health", timeout=5.0).is_success:
                return True
        except httpx2.HTTPError:
            pass
        time.sleep(0.1)
    return False


def medusa_server(model: Sequence[str], rows: int) -> list[str]:
    """Return the command of `medusa serve`.

    Args:
        model: its arguments that choose the model.
        rows: requests that decode at the same time.
    """
    return [sys.executable, "-m", "medusa.cli", "serve", *model, "--max-rows", str(rows)]


def transformers_server(path: str, folder: Path, dtype: str, blocks: int) -> list[str]:
    """Return the command of transformers' server with continuous batching on a CPU.

    Args:
        path: the program.
        folder: the base model.
        blocks: blocks of 32 tokens in its cache, which would otherwise take nearly all memory.
    """
    blocks_of_cache = ["--cb-block-size", "32", "--cb-num-blocks", str(blocks)]
    cache = [*blocks_of_cache, "--cb-max-batch-tokens", "512"]
    model = [str(folder), "--device", "cpu", "--dtype", dtype, "--host", "127.0.0.1"]
    return [path, "serve", *model, "--continuous-batching", *cache]


def llama_server(path: str, file: Path, threads: int, rows: int, context: int) -> list[str]:
    """Return the command of llama.cpp's server.

    Args:
        path: the program.
        file: the model.
        rows: requests that decode at the same time.
        context: tokens that each of them may hold.
    """
    size = ["--parallel", str(rows), "--ctx-size", str(rows * context)]
    return [path, "--model", str(file), "--threads", str(threads), "--host", "127.0.0.1", *size]
