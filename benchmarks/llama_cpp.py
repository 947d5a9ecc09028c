"""llama.cpp as a method to compare with, through node-llama-cpp and a GGUF file."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from torch import Tensor

from medusa.evaluation.methods import Run
from medusa.loading import MedusaModel

SCRIPT = Path(__file__).with_suffix(".mjs")


class LlamaCpp:
    """A process that decodes greedily with llama.cpp.

    Args:
        packages: folder in which `npm install node-llama-cpp --ignore-scripts` was run.
        file: the GGUF file.
        threads: CPU threads.
        lookup: speculate by llama.cpp's prompt lookup.

    Raises:
        FileNotFoundError: node or the package is not installed.
    """

    def __init__(self, packages: Path, file: Path, threads: int, lookup: bool = False):
        node, package = shutil.which("node"), packages / "node_modules" / "node-llama-cpp"
        if node is None or not package.is_dir():
            raise FileNotFoundError(
                f"--llama-cpp needs node and {package}: run `npm install node-llama-cpp "
                f"--ignore-scripts` in {packages}"
            )
        kind = "lookup" if lookup else "plain"
        command = [node, str(SCRIPT), str(packages.resolve()), str(file), str(threads), kind]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, model: MedusaModel, prompt: Tensor, arguments: dict[str, Any]) -> Run:
        """Answer a prompt [1, P]; this is a `Method`.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"ids": prompt[0].tolist(), "limit": arguments["max_new_tokens"]}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp has ended with status {self.process.wait()}")
        answer = json.loads(line)
        ids, first = answer["ids"], answer["first"]
        return Run(ids, len(ids) - 1, first, answer["seconds"] - first)

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()
