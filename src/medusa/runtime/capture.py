"""CUDA graphs of functions whose inputs have fixed shapes.

A forward of a large model launches hundreds of small kernels. Launching them one by one from Python
can take longer than running them; replaying a captured graph launches them all at once. On a CPU
the same code path runs without a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
WARM_UPS = 2
"""Calls before a capture, in which libraries allocate workspaces and choose kernels."""


class Captured:
    """A function that runs on static input buffers, on a GPU as a captured graph.

    All other tensors that the function reads or writes must keep their addresses. Each call
    overwrites the outputs of the previous one.

    Args:
        function: takes named tensors and does not synchronise with the CPU.
        inputs: example inputs; all calls must have these shapes.
    """

    def __init__(self, function: Callable[..., Any], inputs: Inputs):
        self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self.graph: torch.cuda.CUDAGraph | None = None
        if any(tensor.is_cuda for tensor in self.inputs.values()):
            self._capture(function)

    def _capture(self, function: Callable[..., Any]) -> None:
        # CUDA requires the warm-up to run on a stream other than the default one.
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
        """Copy the inputs into the buffers and return the function's result.

        `function` itself is called only if there is no graph, that is, on a CPU.
        """
        for name, buffer in self.inputs.items():
            buffer.copy_(inputs[name])
        if self.graph is None:
            return function(**self.inputs)
        self.graph.replay()
        return self.outputs


class Captures:
    """A store of captured functions, by shapes; all belong to one execution state.

    Attributes:
        state: the execution state of the captures, such as addresses of weights and caches. A
            call with another state drops them.
    """

    def __init__(self) -> None:
        self.state: Any = None
        self._captured: dict[Any, Captured] = {}

    def __len__(self) -> int:
        return len(self._captured)

    def run(self, state: Any, key: Any, function: Callable[..., Any], inputs: Inputs) -> Any:
        """Return the result of `function(**inputs)`, capturing it first if the key is new.

        Args:
            state: the current execution state.
            key: identifies the function and the shapes of its inputs.
            function: see `Captured`.
            inputs: the function's arguments.
        """
        if state != self.state:
            self.state, self._captured = state, {}
        if key not in self._captured:
            self._captured[key] = Captured(function, inputs)
        return self._captured[key](function, inputs)
