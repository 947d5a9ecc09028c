"""A function of tensors as a compiled program: traced once into operators, compiled by Inductor, Python left out.

Half of a small model's step on a CPU is Python between a thousand operators. Sizes that change from step to step stay
symbols, so that one program serves every context and every tree. What tracing took for granted about sizes is asked
before each run; where it does not hold, another program is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Argument:
    """A tensor to run a program on.

    Attributes:
        tensor: what a program reads or writes.
        varies: its dimensions that other runs may have in another size.
    """

    tensor: Tensor
    varies: tuple[int, ...]


class Program:
    """`function` compiled for arguments like these; what it writes to its arguments, the program does too.

    Tensors that the function reaches by other ways (weights, say) are read where they lie.

    Raises:
        Exception: whatever tracing and compiling raise: values decide what is computed, or no C++ compiler is there.
    """

    def __init__(self, function: Function, arguments: Sequence[Argument]):
        # the compiler takes a second to import, which only those who compile should wait for
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP, ShapeEnv

        sizes = ShapeEnv(duck_shape=False)  # two sizes that happen to be equal need not stay so
        fake = FakeTensorMode(shape_env=sizes, allow_non_fake_inputs=True)
        with torch.inference_mode(False), torch.no_grad():
            inputs = [_symbolic(fake, argument, number) for number, argument in enumerate(arguments)]
            traced = make_fx(function, _allow_non_fake_inputs=True)(*inputs)
            self._run: Any = torch._inductor.compile(traced, list[Any](inputs))
        assumed = sizes.produce_guards_expression(inputs, ignore_static=False) or "True"
        self._assumed = compile(assumed, "<sizes>", "eval")
        self._names = SYMPY_INTERP

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the program holds for tensors of these sizes."""
        named = {f"t{number}": tensor for number, tensor in enumerate(tensors)}
        return bool(eval(self._assumed, self._names, {"L": named}))  # torch wrote it, from sizes

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = self._run(*tensors)
        return result


class Programs:
    """The programs of one function; another state of the world forgets them.

    Attributes:
        state: what else they were compiled with: addresses of weights, say.
    """

    def __init__(self) -> None:
        self.state: Any = None
        self._known: list[Program] = []

    def __len__(self) -> int:
        return len(self._known)

    def get(self, state: Any, function: Function, arguments: Sequence[Argument]) -> Program:
        """A program for these arguments; compiled if there is none."""
        if state != self.state:
            self.state, self._known = state, []
        tensors = [argument.tensor for argument in arguments]
        for program in self._known:
            if program.fits(tensors):
                return program
        self._known.append(Program(function, arguments))
        return self._known[-1]


def _symbolic(fake: FakeTensorMode, argument: Argument, number: int) -> FakeTensor:
    """A stand-in without memory, with symbols for the sizes that vary."""
    from torch._dynamo.source import LocalSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    like = argument.tensor
    sizes = [DimDynamic.DYNAMIC if place in argument.varies else DimDynamic.STATIC for place in range(like.dim())]
    ordinary = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    return fake.from_tensor(
        ordinary,
        source=LocalSource(f"argument_{number}"),
        symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes),
    )
