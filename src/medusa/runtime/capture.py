"""A function of tensors with fixed shapes: on a GPU it is captured once as a graph and replayed
after.

A step of a large model is hundreds of small kernels; launched one by one from Python they take
longer than they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
WARM_UPS = 2


class Captured:
    """Runs `function(**inputs)` on buffers that inputs are copied to; on a GPU by replaying what
    was captured.

    What the function reads and writes besides its inputs must stay where it is. The next call
    overwrites the outputs.

    Args:
        function: of named tensors, without synchronisation.
        inputs: of the shapes that all calls will have.
    """

    def __init__(self, function: Callable[..., Any], inputs: Inputs):
        self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self.graph: torch.cuda.CUDAGraph | None = None
        if any(tensor.is_cuda for tensor in self.inputs.values()):
            self._capture(function)

    def _capture(self, function: Callable[..., Any]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function(**self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(**self.inputs)

    def __call__(self, function: Callable[..., Any], inputs: Inputs) -> Any:
        """The function's result for these inputs; the function itself is only run where nothing was
        captured.
        """
        for name, buffer in self.inputs.items():
            buffer.copy_(inputs[name])
        if self.graph is None:
            return function(**self.inputs)
        self.graph.replay()
        return self.outputs


class Captures:
    """Captured functions by their shapes, all of one state of the world; another state forgets
    them.

    Attributes:
        state: what they were captured with: addresses of weights and caches, say.
    """

    def __init__(self) -> None:
        self.state: Any = None
        self._known: dict[Any, Captured] = {}

    def __len__(self) -> int:
        return len(self._known)

    def run(self, state: Any, key: Any, function: Callable[..., Any], inputs: Inputs) -> Any:
        """The function's result; captured when first run with this key and state."""
        if state != self.state:
            self.state, self._known = state, {}
        if key not in self._known:
            self._known[key] = Captured(function, inputs)
        return self._known[key](function, inputs)
