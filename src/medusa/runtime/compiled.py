"""A function of tensors as a compiled program: traced once into operators, compiled by Inductor,
Python left out.

Half of a small model's step on a CPU is Python between a thousand operators. Sizes that change from
step to step stay symbols, so that one program serves every context and every tree. What tracing
took for granted about sizes is asked before each run; where it does not hold, another program is
compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

Function = Callable[..., tuple[Tensor, ...]]


class Program:
    """`function` compiled for arguments like these; what it writes to its arguments, the program
    does too.

    Tensors that the function reaches by other ways (weights, say) are read where they lie.

    Args:
        function: of tensors; it is given the inputs and the stores.
        inputs: tensors of which all sizes may vary.
        stores: tensors [B, heads, C, width] to read and write, of which B and C may vary. Those
            that have equal sizes now have so in every run.

    Raises:
        Exception: whatever tracing and compiling raise: values decide what is computed, or no C++
            compiler is there.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], stores: Sequence[Tensor]):
        # the compiler takes a second to import, which only those who compile should wait for
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP, ShapeEnv

        sizes = ShapeEnv(duck_shape=False)  # two sizes that happen to be equal need not stay so
        fake = FakeTensorMode(shape_env=sizes, allow_non_fake_inputs=True)
        with torch.inference_mode(False), torch.no_grad():
            symbolic = [_symbolic(fake, each, range(each.dim())) for each in inputs]
            first: dict[Any, int] = {}  # of the stores of equal sizes
            for store in stores:
                like = first.setdefault((store.shape, store.dtype), len(symbolic))
                symbolic.append(
                    _alike(symbolic[like])
                    if like < len(symbolic)
                    else _symbolic(fake, store, (0, 2))
                )
            traced = make_fx(function, _allow_non_fake_inputs=True)(*symbolic)
            self._run: Any = torch._inductor.compile(traced, list[Any](symbolic))
        self._asked = [*range(len(inputs)), *first.values()]
        self._dtypes = [symbolic[place].dtype for place in self._asked]
        assumed = sizes.produce_guards_expression(
            [symbolic[place] for place in self._asked], ignore_static=False
        )
        self._assumed = compile(assumed or "True", "<sizes>", "eval")
        self._names = SYMPY_INTERP

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the program holds for such inputs and stores."""
        asked = [tensors[place] for place in self._asked]
        if [tensor.dtype for tensor in asked] != self._dtypes:
            return False
        named = {f"t{number}": tensor for number, tensor in enumerate(asked)}
        return bool(eval(self._assumed, self._names, {"L": named}))  # torch wrote it, from sizes

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = self._run(*tensors)
        return result


class Programs:
    """The programs of one function; another state of the world forgets them.

    Attributes:
        state: what else they were compiled with: weights and settings, say.
    """

    def __init__(self) -> None:
        self.state: Any = None
        self._known: list[Program] = []

    def __len__(self) -> int:
        return len(self._known)

    def get(
        self, state: Any, function: Function, inputs: Sequence[Tensor], stores: Sequence[Tensor]
    ) -> Program:
        """A program for these arguments; compiled if there is none."""
        if state != self.state:
            self.state, self._known = state, []
        for program in self._known:
            if program.fits([*inputs, *stores]):
                return program
        self._known.append(Program(function, inputs, stores))
        return self._known[-1]


def _symbolic(fake: FakeTensorMode, like: Tensor, varies: Iterable[int]) -> FakeTensor:
    """A stand-in with symbols for the sizes that vary; besides that, one of size 1 is always of
    size 1.
    """
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    sizes = [
        DimDynamic.DYNAMIC if place in varies else DimDynamic.STATIC for place in range(like.dim())
    ]
    ordinary = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    return fake.from_tensor(
        ordinary,  # inference tensors have no version, which stand-ins are asked for
        source=ConstantSource(f"argument_{id(ordinary)}"),
        symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes),
    )


def _alike(stand_in: FakeTensor) -> FakeTensor:
    """Another one of the same sizes."""
    return torch.empty_like(stand_in)  # type: ignore[return-value]
