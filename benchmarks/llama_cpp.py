"""llama.cpp as a method to compare with: its server, and a GGUF file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from torch import Tensor

from medusa.evaluation.methods import Run
from medusa.loading import MedusaModel

from .servers import llama_server, started

CONTEXT = 2048
"""Tokens that a text may have."""
LOOKUP = ("--spec-type", "ngram-simple", *("--spec-ngram-simple-size-n", "3"))
"""Arguments of a server that proposes what followed the last three tokens earlier in the text."""
SECONDS = 600.0
"""Seconds after which a server that sends nothing has failed."""


@dataclass
class LlamaCpp:
    """A server that decodes greedily with llama.cpp.

    Attributes:
        address: its URL.
    """

    address: str

    def __call__(self, model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
        """Answer a prompt [1, P]; this is a `Method`.

        Raises:
            httpx2.HTTPError: the server fails.
        """
        body = {
            "prompt": prompt[0].tolist(),
            "n_predict": arguments["max_new_tokens"],
            "temperature": 0,
            "stream": True,
            "return_tokens": True,
            "cache_prompt": False,
        }
        ids: list[int] = []
        begin = last = time.perf_counter()
        first = 0.0
        with httpx2.stream("POST", f"{self.address}/completion", json=body, timeout=SECONDS) as got:
            got.raise_for_status()
            for line in got.iter_lines():
                if not line.startswith("data:"):
                    continue
                piece = json.loads(line.removeprefix("data:"))
                last = time.perf_counter()
                first = first or last - begin
                ids += piece.get("tokens") or []
                if piece.get("stop_type") == "eos":  # it is computed, but not sent
                    ids.append(model.base.generation_config.eos_token_id)
        return Run(ids, len(ids) - 1, first, last - begin - first)


@contextmanager
def llama_cpp(
    program: str, file: Path, threads: int, arguments: Sequence[str] = ()
) -> Iterator[LlamaCpp]:
    """Run llama.cpp's server on a model.

    Args:
        program: llama-server; docs/serving.md says how to build it.
        file: the GGUF file.
        threads: CPU threads.
        arguments: further arguments of the server.

    Raises:
        RuntimeError: see `started`.
    """
    command = [*llama_server(program, file, threads, 1, CONTEXT), *arguments]
    with started(command, threads) as server:
        yield LlamaCpp(server.address)
