"""GGUF files, the format of llama.cpp: converted once to a folder that transformers reads."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..files import cache_folder, locked

SUFFIX = ".gguf"
DTYPES = {frozenset({"F32"}): torch.float32, frozenset({"F16"}): torch.float16}
"""Dtype of the converted model by the types of the file's matrices; else it is bfloat16.

Some matrices of a float16 file may be in float32.
"""
OLDEST_TRANSFORMERS = "5.18"
"""Older versions take the token that begins a text for the one that ends it."""


def is_gguf(name: str | Path) -> bool:
    """Return True if a name is the path of a GGUF file."""
    file = Path(name).expanduser()
    return file.suffix.lower() == SUFFIX and file.is_file()


def files_of(name: str) -> str:
    """Return the folder that holds a GGUF file's model; any other name is returned unchanged.

    A file is converted when it is first used, and again when it has changed. The folder lies in
    `cache_folder()`, in the subfolder `gguf`.

    Raises:
        ImportError: the file is not converted yet, and the package gguf is not installed or
            transformers is too old.
        ValueError: transformers cannot read the file.
    """
    if not is_gguf(name):
        return name
    file = Path(name).expanduser().resolve()
    state = file.stat()
    key = hashlib.sha256(f"{file} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_folder() / "gguf" / f"{file.stem}-{key}"
    if folder.is_dir():
        return str(folder)
    with locked(folder, waiting=lambda: None):
        if not folder.is_dir():
            convert(file, folder)
    return str(folder)


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer to a new folder, as `save_pretrained` does.

    Raises:
        ImportError: the package gguf is not installed, or transformers is too old.
        ValueError: transformers cannot read the file.
    """
    dtype = _dtype(file)
    if Version(transformers.__version__) < Version(OLDEST_TRANSFORMERS):
        raise ImportError(
            f"GGUF files need transformers {OLDEST_TRANSFORMERS} or newer; this is "
            f"{transformers.__version__}: pip install -U transformers"
        )
    # an absolute path, because transformers looks for a relative one in the working directory first
    source: dict[str, Any] = {"gguf_file": str(file.absolute())}
    # newer versions of transformers keep quantised weights packed where a kernel computes with them
    config = getattr(transformers, "GgufConfig", None)
    dense = {} if config is None else {"quantization_config": config(dequantize=True)}
    try:
        read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=dtype, **source, **dense)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
    except Exception as error:  # transformers and gguf raise many types
        raise ValueError(f"{file} cannot be read by transformers: {error}") from error
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _without_origin(read).save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def _dtype(file: Path) -> torch.dtype:
    """Return the dtype for the model of a file; see `DTYPES`."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ImportError(
            "GGUF files need the package gguf: pip install 'medusa-decoding[gguf]'"
        ) from None
    try:
        tensors = GGUFReader(file).tensors
    except Exception as error:  # the reader trusts the file, and fails in many ways
        raise ValueError(f"{file} is not a GGUF file: {error}") from error
    kinds = frozenset(tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1)
    return DTYPES.get(kinds - {"F32"} or kinds, torch.bfloat16)


def _without_origin(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the model without the settings of the GGUF file.

    transformers refuses to save a model that has them.
    """
    config = model.config
    for mark in ("quantization_config", "_model_name_or_path"):
        vars(config).pop(mark, None)
    config.name_or_path = ""
    with torch.device("meta"):
        plain: PreTrainedModel = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
