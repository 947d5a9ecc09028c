"""Weights files: safetensors files of ours, and a model's files as transformers keeps them, a
tensor at a time.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import Schema, read_json

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
POINTER = b"version https://git-lfs.github.com/spec/"


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Yield a safetensors file, open for reading.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole safetensors file; says what it is.
    """
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except SafetensorError as error:
        raise ValueError(f"{file} {_fault(file)}: {error}") from None


def _fault(file: Path) -> str:
    with file.open("rb") as content:
        if content.read(len(POINTER)) == POINTER:
            return f"is a Git LFS pointer, not the weights (run `git lfs pull` in {file.parent})"
    return "is not a whole safetensors file (copy or download it again)"


def check_files(folder: Path) -> None:
    """Raises ValueError where a safetensors file of a folder is broken."""
    for file in sorted(folder.glob("*.safetensors")):
        with opened(file):
            pass


class _Index(Schema):
    """Which file of a sharded model holds which tensor."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """The weights files of a model that are on this machine, in the order that transformers looks
    for them.

    Attributes:
        file: the weights, or the index of a sharded model's weights.
    """

    file: Path

    @classmethod
    def find(cls, name: str, **hub: Any) -> Checkpoint | None:
        """Return the checkpoint of a folder or hub id; None where none is on this machine.

        Args:
            hub: revision and cache_dir of a hub id.
        """
        for each in (SAFE, SAFE + INDEX, PICKLED, PICKLED + INDEX):
            file = located(name, each, **hub)
            if file is not None:
                return cls(file)
        return None

    @cached_property
    def places(self) -> dict[str, Path]:
        """The file of each tensor, by the tensor's name.

        Raises:
            ValueError: a file is broken.
        """
        if self.file.name.endswith(INDEX):
            return tensor_files(self.file)
        if self.file.name == PICKLED:
            return dict.fromkeys(self._pickled(self.file), self.file)
        with opened(self.file) as content:
            return dict.fromkeys(content.keys(), self.file)

    def read(self, name: str) -> Tensor | None:
        """Return a tensor; None where the checkpoint does not have it, or not on this machine."""
        file = self.places.get(name)
        if file is None or not file.is_file():
            return None
        if file.suffix == ".bin":
            return self._pickled(file).get(name)
        with opened(file) as content:
            tensor: Tensor = content.get_tensor(name)
        return tensor

    @cached_property
    def _open(self) -> dict[Path, dict[str, Tensor]]:
        return {}

    def _pickled(self, file: Path) -> dict[str, Tensor]:
        """The tensors of a pickle, mapped into memory; none where its format cannot be mapped."""
        if file not in self._open:
            try:
                self._open[file] = torch.load(
                    file, map_location="cpu", weights_only=True, mmap=True
                )
            except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
                self._open[file] = {}
        return self._open[file]


def tensor_files(index: Path) -> dict[str, Path]:
    """Return the file of each tensor that an index lists.

    Raises:
        ValueError: it is no index.
    """
    return {name: index.parent / file for name, file in read_json(index, _Index).weight_map.items()}


def located(name: str, file: str, **hub: Any) -> Path | None:
    """Return the path of a file of a folder, or of a hub repository where it is cached; None where
    it is not.
    """
    if Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    found = try_to_load_from_cache(name, file, **hub)
    return Path(found) if isinstance(found, str) else None


def cache_arguments(hub: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the hub's arguments that say what is looked for in its cache."""
    return {name: hub[name] for name in ("revision", "cache_dir") if hub.get(name) is not None}
