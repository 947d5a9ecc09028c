"""Run generated Python programs in a process of their own, with limits.

The limits stop a program that runs for too long, fills the memory or writes large files. They are
no protection against a program that means harm: run those in a container.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 10.0
"""Default time limit of a program."""
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
BOOT = """
import runpy, sys
try:
    import resource
except ImportError:  # not on Windows
    pass
else:
    memory, size, seconds = map(int, sys.argv[2:])
    for limit, value in (
        (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, size), (resource.RLIMIT_CPU, seconds)
    ):
        resource.setrlimit(limit, (value, value))
runpy.run_path(sys.argv[1], run_name="__main__")
"""
"""Program that sets the limits before it runs the one that it is given."""


def succeeds(program: str, seconds: float = SECONDS) -> bool:
    """Return True if a Python program ends without an error, within a time limit.

    It runs in an empty folder that is deleted afterwards, without the environment's variables,
    installed packages, input or output.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "program.py"
        file.write_text(program, encoding="utf-8", errors="replace")
        limits = (MEMORY_BYTES, FILE_BYTES, int(seconds) + 1)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", BOOT, str(file), *map(str, limits)],
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
