"""Provenance of a figure: the machine, the versions and the commit it was measured with."""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers


def provenance() -> dict[str, Any]:
    """Return date, device, threads, versions and commit, to be stored beside a figure."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": device_name(this_device()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": _commit(),
    }


def this_device() -> torch.device:
    """Return the device that measurements of this machine run on: its GPU, else its processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Return the model name of a GPU or of the processor; for other devices their type."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor_name() if device.type == "cpu" else device.type


def _processor_name() -> str:
    """Return the processor's model name, which only Linux gives in full."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit of the repository in the working directory, or "unknown"."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"
