"""Functions of tensors compiled by Inductor, with symbolic sizes.

A forward of a small model on a CPU consists of about a thousand operators, and the Python code
between them takes half of the time. Compiling removes that code. Sizes that change between calls
are symbols, so one program serves all context lengths and row counts. Tracing makes assumptions
about sizes (guards); they are checked before each run, and if one fails, another program is
compiled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..files import cache_folder

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

Function = Callable[..., tuple[Tensor, ...]]
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable by which torch finds the code that earlier processes compiled."""


class Program:
    """A compiled function of tensors, including its writes to the arguments.

    Args:
        function: called with the inputs, the stores and the weights; returns tensors.
        inputs: example tensors; all their sizes may vary.
        stores: example tensors [B, heads, C, width] that the function reads and writes; B and C may
            vary. Stores that have equal sizes here must have equal sizes in every run.
        weights: example tensors whose sizes, strides and dtypes never vary.

    Raises:
        Exception: any error of tracing and compiling, for example because control flow depends on
            values, or because there is no C++ compiler.
    """

    def __init__(
        self,
        function: Function,
        inputs: Sequence[Tensor],
        stores: Sequence[Tensor],
        weights: Sequence[Tensor] = (),
    ):
        # Importing the compiler takes a second, so only those who compile import it.
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP, ShapeEnv

        # With duck shapes, two sizes that happen to be equal would have to stay equal.
        sizes = ShapeEnv(duck_shape=False)
        fake = FakeTensorMode(shape_env=sizes, allow_non_fake_inputs=True)
        with torch.inference_mode(False), torch.no_grad():
            symbolic, distinct_stores = _symbolic_arguments(fake, inputs, stores, weights)
            with fake:  # new tensors get symbolic sizes, too
                traced = make_fx(function, _allow_non_fake_inputs=True)(*symbolic)
            with _compiler_settings():
                self._run: Any = torch._inductor.compile(traced, list[Any](symbolic))
        self._guarded = [*range(len(inputs)), *distinct_stores]
        self._dtypes = [symbolic[index].dtype for index in self._guarded]
        guards = sizes.produce_guards_expression(
            [symbolic[index] for index in self._guarded], ignore_static=False
        )
        self._guards = compile(guards or "True", "<sizes>", "eval")
        self._guard_names = SYMPY_INTERP

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Return True if the program's guards hold for these inputs and stores."""
        guarded = [tensors[index] for index in self._guarded]
        if [tensor.dtype for tensor in guarded] != self._dtypes:
            return False
        tensors_by_name = {f"t{number}": tensor for number, tensor in enumerate(guarded)}
        # torch generated this expression from the sizes, so evaluating it is safe.
        return bool(eval(self._guards, self._guard_names, {"L": tensors_by_name}))

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run the program on inputs, stores and weights."""
        result: tuple[Tensor, ...] = self._run(*tensors)
        return result


@contextmanager
def _compiler_settings() -> Iterator[None]:
    """Keep compiled code for later processes, unless the user has chosen a folder for it."""
    unset = CACHE_VARIABLE not in os.environ
    if unset:
        os.environ[CACHE_VARIABLE] = str(cache_folder() / "compiled")
    try:
        # torch would build test programs for ten seconds to learn which vectors the CPU has
        with torch._inductor.config.patch({"cpp.vec_isa_ok": True}):
            yield
    finally:
        if unset:
            del os.environ[CACHE_VARIABLE]


def _symbolic_arguments(
    fake: FakeTensorMode,
    inputs: Sequence[Tensor],
    stores: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> tuple[list[FakeTensor], list[int]]:
    """Return fake tensors for a program's arguments, and the indices of stores of distinct sizes.

    Stores of equal sizes share their symbols. Without that, a cache of many layers would have a
    guard for every layer.
    """
    symbolic: list[FakeTensor] = []

    def add(tensor: Tensor, varying: Iterable[int]) -> None:
        symbolic.append(_symbolic(fake, tensor, varying, len(symbolic)))

    for tensor in inputs:
        add(tensor, range(tensor.dim()))
    first: dict[Any, int] = {}  # the index of the first store of each shape and dtype
    for store in stores:
        index = first.setdefault((store.shape, store.dtype), len(symbolic))
        if index < len(symbolic):
            symbolic.append(_with_same_sizes(symbolic[index]))
        else:
            add(store, (0, 2))
    for weight in weights:
        add(weight, ())
    return symbolic, list(first.values())


def _symbolic(
    fake: FakeTensorMode, tensor: Tensor, varying: Iterable[int], index: int
) -> FakeTensor:
    """Return a fake tensor with symbols for the sizes of the varying dimensions.

    A varying dimension of size 1 stays 1, because torch specialises programs for sizes 0 and 1.
    """
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    sizes = [
        DimDynamic.DYNAMIC if dim in varying else DimDynamic.STATIC for dim in range(tensor.dim())
    ]
    # Fake tensors need a version counter, which inference tensors lack, so an empty copy is used.
    ordinary = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return fake.from_tensor(
        ordinary,
        # symbols are named by a hash of this; the compiler's cache is found by those names
        source=ConstantSource(f"argument_{index}"),
        symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes),
    )


def _with_same_sizes(fake_tensor: FakeTensor) -> FakeTensor:
    """Return another fake tensor with the same symbolic sizes."""
    return torch.empty_like(fake_tensor)  # type: ignore[return-value]
