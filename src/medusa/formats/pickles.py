"""Pickled weights (`.bin`, `.pt`): read as tensors alone, so that no code of a file ever runs."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

SUFFIXES = (".bin", ".pt")
CODE = re.compile(r"GLOBAL (\w+(?:\.\w+)*)")
"""How torch names, in its error, the function that a pickle asks for."""


def read_pickle(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickle by name; they are memory-mapped where the file allows it.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: opening the file would run code, or it is not a whole file of named tensors.
    """
    try:
        # Files of torch before 1.6 are no zip archives, and cannot be mapped.
        content = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(_fault(file, str(error))) from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, and named tensors are needed")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _fault(file: Path, error: str) -> str:
    """Say why a pickle cannot be read, and what to do."""
    code = CODE.search(error)
    if code is not None:
        return (
            f"{file} is refused: opening it would run code ({code[1]}). Get the heads as "
            "safetensors, or as a pickle of tensors alone"
        )
    return f"{file} is not a whole file of tensors (copy or download it again)"
