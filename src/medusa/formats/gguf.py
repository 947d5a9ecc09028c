"""GGUF files, the format of llama.cpp: converted once to a folder that transformers reads."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..files import locked

SUFFIX = ".gguf"
DTYPES = {"F32": torch.float32, "F16": torch.float16}
"""Dtypes of files that hold only such weights. Weights of all others become bfloat16."""


def is_gguf(name: str | Path) -> bool:
    """Return True if a name is the path of a GGUF file."""
    file = Path(name).expanduser()
    return file.suffix.lower() == SUFFIX and file.is_file()


def files_of(name: str) -> str:
    """Return the folder that holds a GGUF file's model; any other name is returned unchanged.

    A file is converted when it is first used, and again when it has changed. The folder lies in
    `cache_folder()`, in the subfolder `gguf`.

    Raises:
        ImportError: the file is not converted yet, and the package gguf is not installed.
        ValueError: transformers cannot read the file.
    """
    if not is_gguf(name):
        return name
    file = Path(name).expanduser().resolve()
    state = file.stat()
    key = hashlib.sha256(f"{file} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_folder() / "gguf" / f"{file.stem}-{key}"
    with locked(folder, waiting=lambda: None):
        if not folder.is_dir():
            convert(file, folder)
    return str(folder)


def cache_folder() -> Path:
    """Return the folder for what can be made again: `medusa` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "medusa"


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer to a new folder, as `save_pretrained` does.

    Raises:
        ImportError: the package gguf is not installed.
        ValueError: transformers cannot read the file.
    """
    dtype = _dtype(file)
    source: dict[str, Any] = {"gguf_file": file.name}
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
    """Return the dtype that a file's matrices are stored in, or bfloat16 if they are quantised."""
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
    kinds = {tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1}
    return DTYPES.get(kinds.pop(), torch.bfloat16) if len(kinds) == 1 else torch.bfloat16


def _without_origin(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without the marks of its file, with which transformers does not save it."""
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
