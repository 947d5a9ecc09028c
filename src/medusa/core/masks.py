"""Attention masks: the cache columns that each node sees (section 2.1.2 and figure 2).

A node sees its row's context, its ancestors and itself. Rows may verify different trees in one
forward: smaller trees are padded to the node count of the largest.
Shapes: B rows, N tree nodes with padding, C cache columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from .tree import CandidateTree


class TreeBatch:
    """The trees that the rows of one forward verify.

    Args:
        trees: one tree for each row, or a single one for all rows.

    Attributes:
        nodes: N, the node count of the largest tree.
        max_depth: depth of the deepest tree.
        shared: the tree of all rows; None where rows have different trees.
        depth: [B or 1, N] depth of each node; 0 for padding.
        mask: [B or 1, N, N] which nodes a node sees; padding sees only itself.
    """

    def __init__(self, trees: Sequence[CandidateTree]):
        self.nodes = max(map(len, trees))
        self.max_depth = max(tree.max_depth for tree in trees)
        self.shared = trees[0] if all(tree == trees[0] for tree in trees) else None
        stacked = trees[:1] if self.shared is not None else trees
        self.depth = torch.zeros(len(stacked), self.nodes, dtype=torch.long)
        self.mask = torch.eye(self.nodes, dtype=torch.bool).repeat(len(stacked), 1, 1)
        for row, tree in enumerate(stacked):
            self.depth[row, : len(tree)] = tree.depth
            self.mask[row, : len(tree), : len(tree)] = tree.mask

    @staticmethod
    def of(trees: CandidateTree | Sequence[CandidateTree]) -> TreeBatch:
        """Return the batch of these trees, cached between calls."""
        return _batch((trees,) if isinstance(trees, CandidateTree) else tuple(trees))


@lru_cache(maxsize=64)
def _batch(trees: tuple[CandidateTree, ...]) -> TreeBatch:
    with torch.inference_mode(False):
        return TreeBatch(trees)


@dataclass(frozen=True)
class Layout:
    """Properties of a base model that masks depend on. Reading them is slow, so they are kept.

    Attributes:
        windows: number of positions that each kind of attention layer sees; None is all.
        flex: True if masks are those of flex attention.
        dtype: of the hidden states, and of masks.
    """

    windows: Mapping[str, int | None]
    flex: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, base: PreTrainedModel) -> Layout:
        """Read the layout of a base model."""
        config = base.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = sorted(set(getattr(config, "layer_types", None) or ()))
        windows = {kind: window if kind == "sliding_attention" else None for kind in kinds}
        flex = config._attn_implementation == "flex_attention"
        return cls(windows or {"all": window}, flex, base.dtype)

    def masks(
        self, lengths: Sequence[int], trees: TreeBatch, columns: int, device: torch.device
    ) -> dict[str, Tensor | BlockMask]:
        """Return the mask of each kind of attention layer; the arguments are those of `visible`."""
        return {
            kind: _block_mask(visible(lengths, trees, columns, device, window))
            if self.flex
            else additive_mask(lengths, trees, columns, self.dtype, device, window)
            for kind, window in self.windows.items()
        }


def _block_mask(seen: Tensor) -> BlockMask:
    rows, nodes, columns = seen.shape
    return create_block_mask(
        lambda b, _, q, k: seen[b, q, k], rows, None, nodes, columns, device=seen.device
    )


def visible(
    lengths: Sequence[int],
    trees: TreeBatch,
    columns: int,
    device: torch.device,
    window: int | None = None,
) -> Tensor:
    """Return [B, N, C] True where a node sees a column.

    Args:
        lengths: context tokens of each row; a row's nodes stand in the N columns behind them.
        trees: what the rows verify.
        columns: C.
        window: how many positions back a node of a sliding-window layer sees, its own included.
    """
    length = torch.tensor(lengths, device=device)[:, None]
    column = torch.arange(columns, device=device)
    offset = column - length
    in_tree = (offset >= 0) & (offset < trees.nodes)
    node = offset.clamp(0, trees.nodes - 1)
    mask, depth = trees.mask.to(device), trees.depth.to(device)
    if trees.shared is not None:
        own = mask[0][:, node].transpose(0, 1)
    else:
        own = mask.gather(2, node[:, None].expand(-1, trees.nodes, -1))
    seen = torch.where(in_tree[:, None], own, (offset < 0)[:, None])
    if window is not None:
        # a window counts positions, and nodes of one depth share a position
        node_position = length + depth
        column_position = torch.where(in_tree, node_position.gather(1, node), column)
        seen &= node_position[:, :, None] - column_position[:, None] < window
    return seen


def additive_mask(
    lengths: Sequence[int],
    trees: TreeBatch,
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
    window: int | None = None,
) -> Tensor:
    """Return [B, 1, N, C]: 0 where a node sees a column, the lowest number where it does not."""
    # eager attention computes its softmax in float32, where a float64's lowest number overflows
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    if window is None and trees.shared is not None and min(lengths) == max(lengths):
        begin, end = lengths[0], lengths[0] + trees.nodes
        mask = torch.zeros(1, 1, trees.nodes, columns, dtype=dtype, device=device)
        mask[..., begin:end] = _among_nodes(trees.shared, lowest, dtype, device)
        if end < columns:
            mask[..., end:] = lowest
        return mask.expand(len(lengths), -1, -1, -1)
    seen = visible(lengths, trees, columns, device, window)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, lowest)[:, None]


@lru_cache(maxsize=64)
def _among_nodes(
    tree: CandidateTree, lowest: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the [N, N] additive mask among the nodes of a tree."""
    return (
        torch.zeros(len(tree), len(tree), dtype=dtype).masked_fill_(~tree.mask, lowest).to(device)
    )
