"""The rows of a shared lm_head that heads with a draft vocabulary multiply by.

Heads that share the base model's lm_head read all of it in every step, besides the base model
itself. Where they may propose only R of V tokens, R rows suffice.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.narrow import Narrow
from ..runtime.packing import PackedLinear, PackedStack, is_packed
from ..runtime.products import packable
from ..runtime.state import is_changed
from .heads import MedusaHeads, Projection


class DraftProjection:
    """The product with those rows, which are packed where linear layers are.

    Args:
        narrow: which weights are packed in fewer bits.
    """

    def __init__(self, narrow: Narrow = None) -> None:
        self._packed = PackedStack(narrow)
        self._packed_head: tuple[int, Tensor] | None = None

    def refresh(self, heads: MedusaHeads, lm_head: nn.Module, packs: bool) -> Projection | None:
        """Return the product of states [..., H] with rows of the lm_head: logits [..., R].

        Args:
            heads: the heads.
            lm_head: the base model's output layer, as it is now.
            packs: pack the rows.

        Returns:
            None if the heads multiply by all rows, have lm_heads of their own, or the layer is not
            an ordinary one, such as one that is quantised or has hooks.
        """
        tokens = heads.token_map
        if tokens is None or heads.w2 is not None:
            return None
        if type(lm_head) not in (nn.Linear, PackedLinear) or is_changed(lm_head):
            return None
        linear = cast(nn.Linear, lm_head)
        bias = None if linear.bias is None else linear.bias.detach()[tokens]
        rows = self._rows(linear, tokens)
        if packs and packable(rows):
            (product,) = self._packed.refresh(rows[None])
            return lambda states: _plus(product(states), bias)
        return lambda states: F.linear(states.to(rows.dtype), rows, bias)

    def _rows(self, lm_head: nn.Linear, tokens: Tensor) -> Tensor:
        """Return the rows [R, H]; those of a weight that exists in packed form are kept."""
        if not is_packed(lm_head):
            return lm_head.weight.detach().index_select(0, tokens)
        handle = lm_head.packed.handle
        if self._packed_head is None or self._packed_head[0] != handle:
            self._packed_head = handle, lm_head.packed.dense().index_select(0, tokens)
        return self._packed_head[1]


def _plus(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product + bias
