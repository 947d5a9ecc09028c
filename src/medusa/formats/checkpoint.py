"""Weights files: safetensors files, and the checkpoints that transformers writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
from .pickles import SUFFIXES, read_pickle

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
"""Suffix of the index of a sharded checkpoint."""
MODEL_FILES = (SAFE, SAFE + INDEX, PICKLED, PICKLED + INDEX)
"""Weights files of a model. The order is transformers': it prefers safetensors to pickles."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""First bytes of a Git LFS pointer, which a clone without LFS holds in place of the weights."""


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Open a safetensors file for reading.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a complete safetensors file. The message says what it is.
    """
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except SafetensorError as error:
        _refuse_pointer(file)
        raise ValueError(
            f"{file} is not a whole safetensors file (copy or download it again): {error}"
        ) from None


def _refuse_pointer(file: Path) -> None:
    """Raise ValueError if a file is a Git LFS pointer."""
    with file.open("rb") as content:
        if content.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(
                f"{file} is a Git LFS pointer, not the weights (run `git lfs pull` in "
                f"{file.parent})"
            )


def check_files(folder: Path) -> None:
    """Raise ValueError if a safetensors file of a folder is broken."""
    for file in sorted(folder.glob("*.safetensors")):
        with opened(file):
            pass


class _Index(Schema):
    """The index of a sharded checkpoint: the file name of each tensor."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """The shape and the dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Checkpoint:
    """Weights on this machine; tensors are read one at a time.

    Attributes:
        file: the weights file, or the index of a sharded checkpoint.
    """

    file: Path

    @classmethod
    def find(
        cls, name: str | Path, files: Iterable[str] = MODEL_FILES, **hub: Any
    ) -> Checkpoint | None:
        """Return the checkpoint of a folder or hub id; None if it is not on this machine.

        Args:
            name: folder or hub id.
            files: names of weights files and indices; the first that exists counts.
            hub: `revision` and `cache_dir` of the hub id.
        """
        for file_name in files:
            file = located(name, file_name, **hub)
            if file is not None:
                return cls(file)
        return None

    @cached_property
    def places(self) -> dict[str, Path]:
        """The file that stores each tensor, by the tensor's name.

        Raises:
            ValueError: a file is broken.
        """
        if self.file.name.endswith(INDEX):
            return tensor_files(self.file)
        if self.file.suffix in SUFFIXES:
            return dict.fromkeys(self._pickled(self.file), self.file)
        with opened(self.file) as content:
            return dict.fromkeys(content.keys(), self.file)

    def read(self, name: str) -> Tensor | None:
        """Return a tensor; None if the checkpoint's files on this machine do not contain it.

        Raises:
            ValueError: a file is broken, or is a pickle that would run code.
        """
        file = self.places.get(name)
        if file is None or not file.is_file():
            return None
        if file.suffix in SUFFIXES:
            return self._pickled(file).get(name)
        with opened(file) as content:
            tensor: Tensor = content.get_tensor(name)
        return tensor

    def entry(self, name: str) -> Entry:
        """Return the shape and the dtype of a tensor, without reading its values.

        Raises:
            FileNotFoundError: the file that an index names does not exist.
            ValueError: a file is broken, or lacks a tensor that its index lists.
        """
        file = self.places[name]
        if file.suffix in SUFFIXES:
            tensor = self._pickled(file).get(name)
            if tensor is None:
                raise ValueError(f"{file} lacks {name}, which {self.file.name} lists")
            return Entry(tuple(tensor.shape), tensor.dtype)
        with opened(file) as content:
            part = content.get_slice(name)
            shape = tuple(part.get_shape())
            # the first zero rows tell the dtype; a single number has no rows
            dtype = part[:0].dtype if shape else content.get_tensor(name).dtype
        return Entry(shape, dtype)

    @cached_property
    def _opened_pickles(self) -> dict[Path, dict[str, Tensor]]:
        return {}

    def _pickled(self, file: Path) -> dict[str, Tensor]:
        """Return the tensors of a pickle, which is opened once."""
        if file not in self._opened_pickles:
            _refuse_pointer(file)
            self._opened_pickles[file] = read_pickle(file)
        return self._opened_pickles[file]


def tensor_files(index: Path) -> dict[str, Path]:
    """Return the file of each tensor that an index lists.

    Raises:
        ValueError: the file is not an index.
    """
    return {name: index.parent / file for name, file in read_json(index, _Index).weight_map.items()}


def located(name: str | Path, file: str, **hub: Any) -> Path | None:
    """Return the local path of a file of a folder or hub id; None if it does not exist locally.

    Nothing is downloaded: of a hub id only the cache is searched. A `Path` is a folder, which need
    not exist.
    """
    if isinstance(name, Path) or Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    cached = try_to_load_from_cache(name, file, **hub)
    return Path(cached) if isinstance(cached, str) else None


def cache_arguments(hub: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the hub's arguments that locate a file in its cache."""
    return {name: hub[name] for name in ("revision", "cache_dir") if hub.get(name) is not None}
