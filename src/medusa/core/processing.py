"""Logits processors over a tree: every node is scored with the prefix that leads to it.

transformers' processors expect one prefix a call. Processors that ignore the prefix score all nodes
in one call. Those that read it get one call for each depth, with each node's own prefix. Those that
may remember earlier calls (grammars, a user's own) are copied along every branch, so that each copy
has seen exactly the calls that plain decoding would have made.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation import logits_process as lp

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

SHARED = (
    nn.Module,
    PreTrainedTokenizerBase,
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Condition,
    threading.Event,
    threading.Semaphore,
    threading.local,
)
"""Types of attributes that copies of a processor share: they are large and do not change, or are
locks, which hold no state between calls.
"""


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
        self.stateless = all(type(each) in STATELESS for each in processors)
        self._branches: list[LogitsProcessorList] = []

    def __bool__(self) -> bool:
        return bool(self.processors)

    @cached_property
    def copyable(self) -> bool:
        """True if all of the processors can be copied."""
        return self.uncopied() is None

    def uncopied(self) -> str | None:
        """Return the name of a processor that cannot be copied, and why; None if all can be.

        Every branch of a tree needs a copy, so such a processor allows only plain decoding.
        """
        for each in self.processors:
            if type(each) not in STATELESS:
                try:
                    copy.deepcopy(each, _shared(each))
                except Exception as error:  # copying a class may raise anything
                    return f"{type(each).__name__} cannot be copied ({error})"
        return None

    def __call__(
        self, ids: Sequence[int], tree: CandidateTree, tokens: Tensor, scores: Tensor
    ) -> Tensor:
        """Return the scores [N, V] of every node after the processors.

        Args:
            ids: the row's text so far, the root included and its last token.
            tokens: [N] the tree's tokens.
            scores: [N, V] logits after every node.
        """
        if not self.processors:
            return scores
        if self.prefix_free:
            return self.processors(tokens[:, None], scores)
        context = torch.tensor(ids, device=tokens.device)
        if self.stateless:
            return self._by_depth(context, tree, tokens, scores)
        return self._by_branch(context, tree, tokens, scores)

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
        if self._branches:
            self.processors = self._branches[node]

    def saved(self) -> tuple[Any, ...]:
        """Return the state that calls change, for `restore`."""
        return self.processors, self._branches

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Undo the calls since `saved`, as far as they made copies of processors."""
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
        self, context: Tensor, tree: CandidateTree, tokens: Tensor, scores: Tensor
    ) -> Tensor:
        self._branches = []
        rows = []
        for node, path in enumerate(tree.paths):
            parent = self._branches[int(tree.parent[node])] if node else self.processors
            # the root's is a copy too, so that a step which fails has changed nothing
            branch = copied_processors(parent) if node or self.copyable else parent
            self._branches.append(branch)
            one = torch.tensor([node], device=tokens.device)
            rows.append(
                _widened(
                    branch(_prefixes(context, tree, tokens, one, len(path)), scores[one]), scores
                )
            )
        return torch.cat(rows)


def copied_processors(processors: Iterable[LogitsProcessor]) -> LogitsProcessorList:
    """Return the processors, with copies of those that may remember earlier calls."""
    return LogitsProcessorList(
        each if type(each) in STATELESS else _copied(each) for each in processors
    )


def _copied(processor: LogitsProcessor) -> LogitsProcessor:
    """Return a copy; attributes that cannot be copied, such as open files, are shared."""
    memo = _shared(processor)
    try:
        return copy.deepcopy(processor, memo)
    except Exception:  # copying a class may raise anything
        try:
            twin = copy.copy(processor)
        except Exception:
            return processor
    for name, value in vars(twin).items() if hasattr(twin, "__dict__") else ():
        with suppress(Exception):
            vars(twin)[name] = copy.deepcopy(value, memo)
    return twin


def _shared(processor: LogitsProcessor) -> dict[int, Any]:
    """Return a `deepcopy` memo of attributes to share: models, tokenizers and locks."""
    held = getattr(processor, "__dict__", {}).values()
    return {id(each): each for each in held if isinstance(each, SHARED)}


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
