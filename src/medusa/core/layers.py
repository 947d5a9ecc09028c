"""Decoder layers that verify trees by a compiled program: one program serves all layers alike.

In a step of a small model on a CPU, the Python code between its operators takes half of the time.
Compiling a whole model removes that code, but takes a minute; its layers are alike, so compiling
one of them takes seconds. The program is given a layer's weights like any other argument.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel

from ..runtime.compiled import Program
from ..runtime.twin import twin
from ..runtime.weights import Weights
from .cache import LayerCache, TreeCache

MOST_KINDS = 4
"""Kinds of layers up to which a model is compiled; each takes two programs."""


@dataclass(frozen=True)
class LayerProgram:
    """A compiled layer: the program, and how its result is made of the tensors it returns."""

    program: Program
    result: Callable[[Sequence[Tensor]], Any]


class LayerPrograms:
    """The compiled programs of a model's decoder layers.

    Attributes:
        failed: why a layer could not be compiled; None if all could. Layers then run as they are.
        prepared: whether several rows decode, for the cases whose steps were compiled in advance.
        context: what the layers' functions depend on besides the layers themselves.
    """

    def __init__(self) -> None:
        self.failed: str | None = None
        self.prepared: set[bool] = set()
        self.context: Any = None
        self._programs: dict[Any, list[LayerProgram]] = {}
        self._last: tuple[Any, LayerProgram] | None = None

    def __len__(self) -> int:
        return sum(map(len, self._programs.values()))

    def fail(self, reason: str) -> None:
        """Let all layers run as they are from now on, and warn."""
        if self.failed is None:
            self.failed = reason
            warnings.warn(
                f"this model cannot be compiled here, and goes on as it is: {reason}", stacklevel=3
            )

    def get(
        self, kind: Any, sized: Sequence[Tensor], compile_layer: Callable[[], LayerProgram]
    ) -> LayerProgram:
        """Return a program for layers of a kind that fits these inputs; compile one if need be.

        Args:
            kind: equal for layers that compute the same function of their weights and inputs.
            sized: tensors whose sizes may vary.
            compile_layer: makes a program for them.
        """
        sizes = kind, [each.shape for each in sized]
        if self._last is None or self._last[0] != sizes:  # all layers of a step have the same
            known = self._programs.setdefault(kind, [])
            fitting = [each for each in known if each.program.fits(sized)]
            if not fitting:
                fitting = [compile_layer()]
                known.append(fitting[0])
            self._last = sizes, fitting[0]
        return self._last[1]


class CompiledLayer(nn.Module):
    """A decoder layer in a twin of the model; it verifies trees by a compiled program.

    Args:
        inner: the layer itself, which runs wherever there is no tree to verify.
        place: number of the layer, by which the cache finds its keys and values.
        programs: of all layers.
    """

    def __init__(self, inner: nn.Module, place: int, programs: LayerPrograms):
        super().__init__()
        self.inner, self.place, self.programs = inner, place, programs
        self.weights = Weights(inner)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        leaves, structure = pytree.tree_flatten((arguments, named))
        cache = next((leaf for leaf in leaves if isinstance(leaf, TreeCache)), None)
        compiled = self.programs.failed is None and self.weights.kind is not None
        if cache is None or cache.slots.columns is None or not compiled:
            return self.inner(*arguments, **named)
        try:
            return self._run(leaves, structure, cache)
        except Exception as error:  # compilers raise errors of many types
            reason = str(error).strip().split("\n")[0]
            self.programs.fail(reason)
            return self.inner(*arguments, **named)

    def _run(self, leaves: list[Any], structure: pytree.TreeSpec, cache: TreeCache) -> Any:
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        inputs = [cache.slots.columns, *(leaves[place] for place in places)]
        sized = [each.contiguous() for each in inputs]  # strides are sizes that are assumed, too
        sized += cache.layers[self.place].keys, cache.layers[self.place].values
        others = repr([leaf for leaf in leaves if not isinstance(leaf, (Tensor, TreeCache))])
        kind = self.weights.kind, self.programs.context, structure, others
        compiled = self.programs.get(kind, sized, lambda: self._compile(leaves, structure, sized))
        return compiled.result(compiled.program([*sized, *self.weights.tensors]))

    def _compile(
        self, leaves: list[Any], structure: pytree.TreeSpec, sized: list[Tensor]
    ) -> LayerProgram:
        """Compile the layer as a function of all its tensors, the weights included."""
        outputs: list[Any] = []

        def layer(columns: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            given = list(tensors)
            states = [given.pop(0) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            mask = max(
                (each for each in states if isinstance(each, Tensor)), key=lambda each: each.dim()
            )
            mine = LayerCache(columns, mask.shape[-1], *given[:2])
            states = [mine if isinstance(each, TreeCache) else each for each in states]
            arguments, named = pytree.tree_unflatten(states, structure)
            outputs[:] = pytree.tree_flatten(self.weights.replaced(given[2:])(*arguments, **named))
            return tuple(each for each in outputs[0] if isinstance(each, Tensor))

        program = Program(layer, sized[:-2], sized[-2:], self.weights.tensors)
        values, returned = outputs

        def result(tensors: Sequence[Tensor]) -> Any:
            found = iter(tensors)
            filled = [next(found) if isinstance(each, Tensor) else each for each in values]
            return pytree.tree_unflatten(filled, returned)

        return LayerProgram(program, result)


def compiled_layers(
    base: PreTrainedModel, replaced: Mapping[nn.Module, nn.Module], programs: LayerPrograms
) -> dict[nn.Module, nn.Module]:
    """Return the decoder layers of a model, and what replaces them in a twin of it.

    Args:
        base: the model.
        replaced: modules within it that are replaced, too, such as packed linear layers.
        programs: where compiled programs are kept.
    """
    config = base.config.get_text_config()
    context = (
        config.to_json_string(),
        config._attn_implementation,
        torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    )
    if context != programs.context:
        programs.context, programs.prepared = context, set()
    count = config.num_hidden_layers
    layers = next(
        (each for each in base.modules() if isinstance(each, nn.ModuleList) and len(each) == count),
        (),
    )
    compiled: dict[nn.Module, CompiledLayer] = {}
    for place, layer in enumerate(layers):
        compiled[layer] = CompiledLayer(twin(layer, replaced), place, programs)
    if not compiled:
        programs.fail("its decoder layers were not found")
    kinds = len({each.weights.kind for each in compiled.values()})
    if kinds > MOST_KINDS:
        programs.fail(f"its layers are of {kinds} kinds, and each kind takes a program of its own")
    return dict(compiled)
