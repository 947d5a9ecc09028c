"""Logits processors over a tree: every node is scored with the prefix that leads to it.

transformers' processors expect one prefix a call. Processors that ignore the prefix score all nodes
in one call. Those that read it get one call for each depth, with each node's own prefix. Those that
may remember earlier calls (grammars, a user's own) are forked along every branch, so that each fork
has seen exactly the calls that plain decoding would have made. They get no call for nodes that
cannot be accepted: a grammar knows no state after a token that it forbids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process as lp

from .acceptance import is_possible
from .forking import fork, fork_as_far_as_possible
from .nucleus import Nucleus
from .tree import CandidateTree

PREFIX_FREE = (
    lp.TemperatureLogitsWarper,
    lp.TopKLogitsWarper,
    lp.TopPLogitsWarper,
    Nucleus,
    lp.MinPLogitsWarper,
    lp.TypicalLogitsWarper,
    lp.EpsilonLogitsWarper,
    lp.EtaLogitsWarper,
    lp.SuppressTokensLogitsProcessor,
    lp.LogitNormalization,
    lp.InfNanRemoveLogitsProcessor,
)
"""Processors that read only the scores."""

STATELESS = (
    *PREFIX_FREE,
    lp.RepetitionPenaltyLogitsProcessor,
    lp.EncoderRepetitionPenaltyLogitsProcessor,
    lp.NoRepeatNGramLogitsProcessor,
    lp.EncoderNoRepeatNGramLogitsProcessor,
    lp.SequenceBiasLogitsProcessor,
    lp.NoBadWordsLogitsProcessor,
    lp.PrefixConstrainedLogitsProcessor,
    lp.MinLengthLogitsProcessor,
    lp.MinNewTokensLengthLogitsProcessor,
    lp.ForcedBOSTokenLogitsProcessor,
    lp.ForcedEOSTokenLogitsProcessor,
    lp.SuppressTokensAtBeginLogitsProcessor,
    lp.ExponentialDecayLengthPenalty,
)
"""Processors without memory: their result depends on their arguments alone."""

ANY_PREFIX = tuple(each for each in STATELESS if each is not lp.PrefixConstrainedLogitsProcessor)
"""Processors without memory that also score prefixes which plain decoding cannot reach. A user's
`prefix_allowed_tokens_fn` may have no answer for those.
"""

MayAccept = Callable[[Tensor, Tensor], bool]
"""Function of a node's scores [V] and a child's token: False if that child cannot be accepted."""


class TreeProcessors:
    """The logits processors of one row, applied to the nodes of a tree.

    Args:
        processors: in the order transformers applies them.
    """

    def __init__(self, processors: Sequence[LogitsProcessor] = ()):
        self.processors = LogitsProcessorList(
            Nucleus.of(each) if type(each) is lp.TopPLogitsWarper else each for each in processors
        )
        self.prefix_free = all(type(each) in PREFIX_FREE for each in processors)
        self.takes_any_prefix = all(type(each) in ANY_PREFIX for each in processors)
        self._branches: dict[int, LogitsProcessorList] = {}

    def __bool__(self) -> bool:
        return bool(self.processors)

    @cached_property
    def forkable(self) -> bool:
        """True if all of the processors can be forked."""
        return self.unforked() is None

    def unforked(self) -> str | None:
        """Return the name of a processor that cannot be forked, and why; None if all can be.

        Every branch of a tree needs a fork, so such a processor allows only plain decoding.
        """
        for each in self.processors:
            if type(each) not in STATELESS:
                try:
                    fork(each)
                except Exception as error:  # copying a class may raise anything
                    return f"{type(each).__name__} cannot be copied ({error})"
        return None

    def __call__(
        self,
        ids: Sequence[int],
        tree: CandidateTree,
        tokens: Tensor,
        scores: Tensor,
        may_accept: MayAccept = is_possible,
    ) -> Tensor:
        """Return the scores [N, V] of every node after the processors.

        Args:
            ids: the row's text so far, the root included and its last token.
            tokens: [N] the tree's tokens.
            scores: [N, V] logits after every node.
            may_accept: says which children can be accepted. Nodes that cannot be keep their logits
                where processors are called node by node.
        """
        if not self.processors:
            return scores
        if self.prefix_free:
            return self.processors(tokens[:, None], scores)
        context = torch.tensor(ids, device=tokens.device)
        if self.takes_any_prefix:
            return self._by_depth(context, tree, tokens, scores)
        return self._by_branch(context, tree, tokens, scores, may_accept)

    def draft(self, logits: Tensor) -> Tensor:
        """Return head logits [K, V] after those processors that need no prefix.

        So drafts come closer to the distribution that verifies them.
        """
        free = LogitsProcessorList(each for each in self.processors if type(each) in PREFIX_FREE)
        return (
            free(logits.new_zeros((len(logits), 1), dtype=torch.long), logits) if free else logits
        )

    def advance(self, node: int) -> None:
        """Continue from an accepted node: the row takes over the processors of its branch."""
        if not self._branches:
            return
        if node not in self._branches:
            raise ValueError("the acceptance policy accepted a node that its may_accept excludes")
        self.processors = self._branches[node]

    def saved(self) -> tuple[Any, ...]:
        """Return the state that calls change, for `restore`."""
        return self.processors, self._branches

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Undo the calls since `saved`, as far as they made forks of processors."""
        self.processors, self._branches = saved

    def _by_depth(
        self, context: Tensor, tree: CandidateTree, tokens: Tensor, scores: Tensor
    ) -> Tensor:
        result = torch.empty_like(scores)
        for depth in range(tree.max_depth + 1):
            nodes = torch.nonzero(tree.depth == depth).squeeze(1).to(tokens.device)
            result[nodes] = self.processors(
                _prefixes(context, tree, tokens, nodes, depth), scores[nodes]
            )
        return result

    def _by_branch(
        self,
        context: Tensor,
        tree: CandidateTree,
        tokens: Tensor,
        scores: Tensor,
        may_accept: MayAccept,
    ) -> Tensor:
        self._branches, result = {}, scores.clone()
        for node, path in enumerate(tree.paths):  # depth first
            parent = int(tree.parent[node])
            if node and not (parent in self._branches and may_accept(result[parent], tokens[node])):
                continue
            before = self._branches[parent] if node else self.processors
            # the root's is a fork too, so that a step which fails has changed nothing
            branch = copied_processors(before) if node or self.forkable else before
            self._branches[node] = branch
            one = torch.tensor([node], device=tokens.device)
            prefix = _prefixes(context, tree, tokens, one, len(path))
            result[node] = _widened(branch(prefix, scores[one]), scores)[0]
        return result


def copied_processors(processors: Iterable[LogitsProcessor]) -> LogitsProcessorList:
    """Return the processors, with forks of those that may remember earlier calls."""
    return LogitsProcessorList(
        each if type(each) in STATELESS else fork_as_far_as_possible(each) for each in processors
    )


def _widened(scores: Tensor, like: Tensor) -> Tensor:
    """Return scores [1, V] of a processor that returned fewer tokens; the rest get -infinity.

    Raises:
        ValueError: there are more scores than tokens, or not one row of them.
    """
    if scores.ndim != 2 or len(scores) != 1:
        raise ValueError(
            f"a logits processor returned scores of shape {list(scores.shape)} for one row"
        )
    missing = like.shape[-1] - scores.shape[-1]
    if missing < 0:
        raise ValueError(
            f"a logits processor returned {scores.shape[-1]} scores for {like.shape[-1]} tokens"
        )
    return F.pad(scores, (0, missing), value=-torch.inf) if missing else scores


def _prefixes(
    context: Tensor, tree: CandidateTree, tokens: Tensor, nodes: Tensor, depth: int
) -> Tensor:
    """Return the prefix [n, S + depth] of each node: the text up to the root, then its path."""
    path = tree.ancestors.to(tokens.device)[nodes, 1 : depth + 1]
    return torch.cat([context.expand(len(nodes), -1), tokens[path]], dim=1)
