"""Acceptance policies: which candidates of a verified tree are accepted.

Shapes: B rows, K heads, N nodes, D tree depth, V vocabulary. Logits are those after the logits
processors, so temperature, truncation and constraints are already in them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .tree import CandidateTree

Generators = Sequence[torch.Generator | None]
"""A random generator for each row, on the logits' device; None draws from torch's global one."""


@dataclass(frozen=True)
class Draft:
    """The tokens of a tree, and the distributions they were drawn from if the policy needs them.

    Attributes:
        tokens: [B, N]; column 0 holds the root, which is the base model's own token.
        probs: [B, K, V] distributions of the heads; None for tokens that were chosen by rank.
    """

    tokens: Tensor
    probs: Tensor | None = None


@dataclass(frozen=True)
class Acceptance:
    """The verdict of one step on each row.

    Attributes:
        path: [B, D + 1] accepted nodes from the root down, padded with the last of them.
        count: [B] accepted nodes, the root included.
        root: [B] the base model's own next token after the accepted path; -1 if no token can be
            sampled, because the logits hold NaN or infinity, or a processor excluded every token.
    """

    path: Tensor
    count: Tensor
    root: Tensor


class AcceptancePolicy(ABC):
    """A rule that accepts candidates of a verified tree. A policy must define `accept`.

    A policy that accepts less than `may_accept` allows can override that too: then logits
    processors with a memory, such as grammars, are called for fewer nodes.

    Rows whose policies are equal are judged in one call. Two policies of one class without
    attributes are equal.
    """

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and not vars(self) and not vars(other))

    def __hash__(self) -> int:
        return id(self) if vars(self) else hash(type(self))

    def draft(
        self, root: Tensor, head_logits: Tensor, tree: CandidateTree, generators: Generators
    ) -> Draft:
        """Fill the tree with tokens: node (.., r) gets the token of rank r of its depth's head.

        Args:
            root: [B] the base model's own tokens.
            head_logits: [B, K, V].
        """
        return Draft(_fill(root, head_logits.topk(tree.max_rank, dim=-1).indices, tree, tree.rank))

    @abstractmethod
    def accept(
        self, tree: CandidateTree, draft: Draft, logits: Tensor, generators: Generators
    ) -> Acceptance:
        """Accept nodes of each row.

        Args:
            logits: [B, N, V] of the base model after every node. Below a node that `may_accept`
                excludes they can be without some logits processors.
        """

    def may_accept(self, logits: Tensor, token: Tensor) -> bool:
        """Return False if a child with this token can never be accepted.

        Args:
            logits: [V] after its parent.
            token: [] of the child.
        """
        return is_possible(logits, token)


class Greedy(AcceptancePolicy):
    """Greedy acceptance: the longest candidate that equals greedy decoding, token for token."""

    def accept(
        self, tree: CandidateTree, draft: Draft, logits: Tensor, generators: Generators
    ) -> Acceptance:
        target = logits.argmax(-1)
        parent = tree.parent.to(target.device)
        agrees = draft.tokens == target[:, parent]
        agrees[:, 0] = True
        return longest(tree, agrees, target)

    def may_accept(self, logits: Tensor, token: Tensor) -> bool:
        return not bool(logits.max() > logits[token])  # NaN included


@dataclass(frozen=True)
class Typical(AcceptancePolicy):
    """Typical acceptance (section 2.3.1): plausible tokens pass; the distribution is not kept.

    A token is accepted if p(x) > min(epsilon, delta * exp(-H(p))), H the entropy of p in nats; the
    longest accepted candidate wins, ties by likelihood. The most probable token always passes for
    delta < 1. As the temperature goes to 0 this becomes greedy decoding, so a request that does not
    sample is decoded greedily.

    Args:
        epsilon: hard threshold.
        delta: entropy-dependent threshold; None is sqrt(epsilon), as the paper recommends.
        root: the base model's own token, accepted unconditionally, is its most probable one as in
            the paper ("greedy": then every seed gives the same text) or is sampled ("sample").
    """

    epsilon: float = 0.09
    delta: float | None = None
    root: Literal["greedy", "sample"] = "greedy"

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is a probability, got {self.epsilon}")
        if not 0 <= self.entropy_threshold < 1:
            raise ValueError(
                "delta must lie in [0, 1), so that the most probable token passes; got "
                f"{self.entropy_threshold}"
            )
        if self.root not in ("greedy", "sample"):
            raise ValueError(f"root must be 'greedy' or 'sample', got {self.root!r}")

    @property
    def entropy_threshold(self) -> float:
        """delta, or sqrt(epsilon) where it is not given."""
        return math.sqrt(self.epsilon) if self.delta is None else self.delta

    def accept(
        self, tree: CandidateTree, draft: Draft, logits: Tensor, generators: Generators
    ) -> Acceptance:
        log_p = logits.float().log_softmax(-1)
        p = log_p.exp()
        entropy = -(p * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)
        threshold = (self.entropy_threshold * torch.exp(-entropy)).clamp_max(self.epsilon)
        parent = tree.parent.to(logits.device)
        likelihood = log_p[:, parent].gather(-1, draft.tokens[..., None]).squeeze(-1)
        passes = likelihood.exp() > threshold[:, parent]
        passes[:, 0], likelihood[:, 0] = True, 0.0
        target = (
            p.argmax(-1)
            if self.root == "greedy"
            else _sample(p, _uniforms(generators, len(tree), p))
        )
        return longest(tree, passes, target.masked_fill(entropy.isnan(), -1), likelihood)


class Rejection(AcceptancePolicy):
    """Rejection sampling: the text follows the base model's distribution, whatever heads propose.

    Recursive rejection sampling without replacement. The children of a node are drawn from the
    head's distribution q: its i-th child in order of rank is the i-th draw. With p_0 = p and q_0 =
    q the i-th child x_i ~ q_{i-1} is accepted with probability min(1, p_{i-1}(x_i) / q_{i-1}(x_i));
    on rejection p_i = norm((p_{i-1} - q_{i-1})+) and q_i = norm(q_{i-1} with x_i zeroed). If none
    is accepted the next token is drawn from what is left of p.
    """

    def draft(
        self, root: Tensor, head_logits: Tensor, tree: CandidateTree, generators: Generators
    ) -> Draft:
        q = head_logits.float().softmax(-1)
        drawn = draws(q, max(tree.widths, default=0), generators)
        return Draft(_fill(root, drawn, tree, tree.order), q)

    def accept(
        self, tree: CandidateTree, draft: Draft, logits: Tensor, generators: Generators
    ) -> Acceptance:
        drawn_from = draft.probs if draft.probs is not None else logits.new_empty(len(logits), 0, 0)
        if drawn_from.shape[1] < tree.max_depth:
            raise ValueError(
                "Rejection judges only what its own `draft` drew: the draft has no probabilities"
            )
        rows = torch.arange(len(logits), device=logits.device)
        node = torch.zeros_like(rows)
        path, count = [node], torch.ones_like(rows)
        p = _precise(logits[:, 0]).softmax(-1)
        uniforms = _uniforms(generators, sum(tree.widths) + 1, p)
        table, first_draw = tree.child_table.to(logits.device), 0
        for depth, width in enumerate(tree.widths):
            chosen, p = _offer(
                table[node, :width],
                draft.tokens,
                p,
                drawn_from[:, depth].to(p.dtype),
                count == depth + 1,
                uniforms[:, first_draw : first_draw + width],
            )
            first_draw += width
            accepted = chosen > 0
            node, count = torch.where(accepted, chosen, node), count + accepted
            if _any(accepted):
                p = torch.where(accepted[:, None], _precise(logits[rows, node]).softmax(-1), p)
            path.append(node)
        return Acceptance(torch.stack(path, 1), count, _sample(p, uniforms[:, -1]))


def _offer(
    children: Tensor, tokens: Tensor, p: Tensor, q: Tensor, alive: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Offer the children of each row's node, one after the other, until one is accepted.

    Args:
        children: [B, R] nodes in order of rank; 0 where there is none.
        tokens: [B, N] of the tree.
        p: [B, V] the base model's distribution after the node.
        q: [B, V] the head's distribution, from which the children were drawn.
        alive: [B] False for rows whose path has ended before.
        uniforms: [B, R] random numbers in [0, 1).

    Returns:
        The accepted child [B], 0 where none is; and what is left of p [B, V] after the rejections.
    """
    rows, chosen = torch.arange(len(tokens), device=tokens.device), torch.zeros_like(children[:, 0])
    for rank in range(children.shape[1] if _any(alive) else 0):
        child = children[:, rank]
        token = tokens[rows, child]
        offered = alive & (child > 0) & (q[rows, token] > 0)
        accepted = offered & (uniforms[:, rank] * q[rows, token] < p[rows, token])
        chosen = torch.where(accepted, child, chosen)
        alive = alive & ~accepted
        if not _any(alive):
            break
        refused = (offered & ~accepted)[:, None]
        rest = (p - q).clamp_min(0)
        # rounding can leave nothing where p is nearly q
        left_over = rest.sum(-1, keepdim=True) > 0
        p = torch.where(refused & left_over, normalised(rest), p)
        q = torch.where(refused, normalised(q.scatter(1, token[:, None], 0.0)), q)
    return chosen, p


def is_possible(logits: Tensor, token: Tensor) -> bool:
    """Return True if the logits [V] do not exclude a token."""
    return bool(logits[token] > -torch.inf)


def _fill(root: Tensor, ranked: Tensor, tree: CandidateTree, choice: Tensor) -> Tensor:
    """Return the tree's tokens [B, N]; node n takes its head's token `choice[n]`.

    Args:
        root: [B].
        ranked: [B, K, R] tokens of each head.
        choice: [N] column of `ranked` for each node.
    """
    depth, choice = tree.depth[1:].to(root.device), choice[1:].to(root.device)
    return torch.cat([root[:, None], ranked[:, depth - 1, choice]], dim=1)


def longest(
    tree: CandidateTree, passes: Tensor, target: Tensor, likelihood: Tensor | None = None
) -> Acceptance:
    """Accept the deepest node whose whole path passes; among equals the likeliest or first path.

    Args:
        passes: [B, N] bool, of each node by itself.
        target: [B, N] the base model's own token after each node.
        likelihood: [B, N] log-probabilities of the nodes' tokens.
    """
    ancestors, depth = tree.ancestors.to(passes.device), tree.depth.to(passes.device)
    score = torch.where(passes[:, ancestors].all(-1), depth, -1)
    if likelihood is None:
        best = score.argmax(-1)
    else:
        total = torch.where(tree.mask.to(likelihood.device), likelihood[:, None], 0.0).sum(-1)
        best = torch.where(score == score.amax(-1, keepdim=True), total, -torch.inf).argmax(-1)
    return Acceptance(ancestors[best], depth[best] + 1, target.gather(1, best[:, None]).squeeze(1))


def _uniforms(generators: Generators, count: int, like: Tensor) -> Tensor:
    """Return random numbers [B, count] in [0, 1), each row from its own generator."""
    return torch.stack(
        [
            torch.rand(count, generator=generator, device=like.device, dtype=like.dtype)
            for generator in generators
        ]
    )


def _sample(probs: Tensor, uniform: Tensor) -> Tensor:
    """Sample tokens [...] from probs [..., V] by inverse transform; never one of probability 0.

    The token is -1 if the probabilities hold NaN or are all 0.
    """
    cumulative = _precise(probs).cumsum(-1)
    total = cumulative[..., -1:]
    threshold = (uniform.to(cumulative.dtype)[..., None] * total).minimum(
        total.nextafter(torch.zeros_like(total))
    )
    tokens = torch.searchsorted(cumulative, threshold, right=True)
    return tokens.masked_fill(~(total > 0), -1).squeeze(-1)


def _precise(numbers: Tensor) -> Tensor:
    """Return numbers in float64, or in float32 on devices without it."""
    return numbers.float() if numbers.device.type == "mps" else numbers.double()


def draws(weights: Tensor, count: int, generators: Generators) -> Tensor:
    """Draw tokens [B, ..., count] without replacement from weights [B, ..., V], in order.

    The order is that of a race: token i arrives after a time drawn from Exp(1) over its weight.
    """
    times = torch.empty_like(weights)
    for row, generator in zip(times, generators, strict=True):
        row.exponential_(generator=generator)
    return (weights / times.clamp_min_(torch.finfo(times.dtype).tiny)).topk(count, dim=-1).indices


def _any(rows: Tensor) -> bool:
    """Return True if any row is True; also True on a GPU, where reading the value would wait."""
    return rows.device.type != "cpu" or bool(rows.any())


def normalised(weights: Tensor) -> Tensor:
    """Return weights [B, V] scaled to sum to 1; rows of zeros stay zeros."""
    return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
