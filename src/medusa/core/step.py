"""Parts of a decoding step: the rows of a batch are drafted and verified in groups.

Shapes: B rows, b rows of a group, N tree nodes, n nodes of a group, K heads, V vocabulary.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .acceptance import AcceptancePolicy, Draft
from .request import Candidates, Event, Row, StepTiming, TokenLogprobs
from .tree import CandidateTree


@dataclass
class Group:
    """Rows of a step that share an acceptance policy and a tree, so that one call judges them.

    Attributes:
        places: the rows' places in the batch.
        rows: the rows themselves.
        draft: the tree's tokens for these rows.
        scores: [b, n, V] processed logits, kept for rows that report them.
    """

    policy: AcceptancePolicy
    tree: CandidateTree
    places: list[int]
    rows: list[Row]
    draft: Draft
    scores: Tensor | None = None


class Clock:
    """Measures a step and its phases."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._begin = self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """End a phase."""
        now = time.perf_counter()
        self.phases[phase], self._last = now - self._last, now

    @property
    def total(self) -> float:
        """Seconds since the clock was created."""
        return time.perf_counter() - self._begin


def grouped(
    rows: Sequence[Row],
    trees: Sequence[CandidateTree],
    roots: Tensor,
    head_logits: Tensor | None,
) -> list[Group]:
    """Draft the rows' trees, group by group.

    Args:
        roots: [B] token of each root.
        head_logits: [B, K, V]; None where all trees are only roots.
    """
    groups = []
    for policy, tree, own in _kinds(rows, trees):
        root, members = of_places(roots, own), [rows[place] for place in own]
        if head_logits is None or not tree.max_depth:
            groups.append(Group(policy, tree, own, members, Draft(root[:, None])))
            continue
        # not more heads than the tree has: random draws must not depend on other rows' trees
        logits = of_places(head_logits, own)[:, : tree.max_depth]
        if any(row.processors for row in members):
            drafts = zip(members, logits.float(), strict=True)
            logits = torch.stack([row.processors.draft(each) for row, each in drafts])
        generators = [row.request.generator for row in members]
        draft = policy.draft(root, logits.to(root.device), tree, generators)
        groups.append(Group(policy, tree, own, members, draft))
    return groups


def _kinds(
    rows: Sequence[Row], trees: Sequence[CandidateTree]
) -> list[tuple[AcceptancePolicy, CandidateTree, list[int]]]:
    """Return each pair of policy and tree that occurs, with the places of its rows."""
    kinds: list[tuple[AcceptancePolicy, CandidateTree, list[int]]] = []
    for place, (row, tree) in enumerate(zip(rows, trees, strict=True)):
        policy = row.request.policy
        for other, other_tree, places in kinds:
            if other == policy and other_tree == tree:
                places.append(place)
                break
        else:
            kinds.append((policy, tree, [place]))
    return kinds


def of_places(batch: Tensor, places: list[int]) -> Tensor:
    """Return the rows at these places of a tensor of the batch; all of them without a copy."""
    return batch if len(places) == len(batch) else batch[places]


def joined(groups: Sequence[Group], trees: Sequence[CandidateTree]) -> Tensor:
    """Return the tokens [B, N] of all rows; smaller trees are padded."""
    if len(groups) == 1:
        return groups[0].draft.tokens
    first = groups[0].draft.tokens
    tokens = first.new_zeros(len(trees), max(map(len, trees)))
    for group in groups:
        tokens[group.places, : len(group.tree)] = group.draft.tokens
    return tokens


def accept(
    groups: Sequence[Group], rows: Sequence[Row], logits: Tensor
) -> tuple[list[list[int]], list[list[int]]]:
    """Apply the policy of every group; return each row's accepted nodes, and update the rows.

    This is the only part of a step that waits for the device.

    Args:
        logits: [B, N, V] of the base model after each node.

    Returns:
        Each row's accepted nodes from the root down, empty for a row that failed; and the tokens
        that each row took.
    """
    verdicts = [judged(group, logits) for group in groups]
    numbers = iter(torch.cat([each.flatten() for each in verdicts]).tolist())
    paths: list[list[int]] = [[] for _ in rows]
    delivered: list[list[int]] = [[] for _ in rows]
    for group, verdict in zip(groups, verdicts, strict=True):
        for place, row in zip(group.places, group.rows, strict=True):
            *candidates, root, count = itertools.islice(numbers, verdict.shape[1])
            width = len(candidates) // 2
            if not row.finished:
                paths[place] = candidates[width : width + count]
                delivered[place] = row.take([*candidates[1:count], root])
    return paths, delivered


def judged(group: Group, logits: Tensor) -> Tensor:
    """Return a group's verdict [b, 2 D + 4]: tokens and nodes of the paths, roots, counts."""
    tokens = group.draft.tokens
    scores = processed(group.rows, group.tree, tokens, of_places(logits, group.places))
    if any(row.request.scores for row in group.rows):
        group.scores = scores
    generators = [row.request.generator for row in group.rows]
    verdict = group.policy.accept(group.tree, group.draft, scores, generators)
    path, root, count = verdict.path, verdict.root[:, None], verdict.count[:, None]
    return torch.cat([tokens.gather(1, path), path, root, count], 1)


def processed(rows: Sequence[Row], tree: CandidateTree, tokens: Tensor, logits: Tensor) -> Tensor:
    """Return base logits [b, n, V] after each row's processors, in float32 as in transformers."""
    scores = logits[:, : len(tree)].float()
    if not any(row.processors for row in rows):
        return scores
    after = list(scores)
    for place, row in enumerate(rows):
        try:
            after[place] = row.processors(
                row.ids, tree, tokens[place], scores[place], row.request.policy.may_accept
            )
        except Exception as error:  # a processor may raise anything
            row.fail(error)
    return torch.stack(after)


def advance(rows: Sequence[Row], paths: Sequence[Sequence[int]], hidden: Tensor) -> None:
    """Set the hidden state of each row to that of its last accepted node, from [B, N, H]."""
    for place, (row, path) in enumerate(zip(rows, paths, strict=True)):
        if path:
            row.hidden = hidden[place, path[-1]]
            row.processors.advance(path[-1])


def observe(
    rows: Sequence[Row],
    trees: Sequence[CandidateTree],
    paths: Sequence[Sequence[int]],
    seconds: float,
) -> None:
    """Report to each schedule the nodes that its rows accepted.

    The largest tree decides how long a step takes, so the schedules of others get no duration.
    """
    schedules = {id(row.schedule): row.schedule for row in rows}
    nodes = {id(row.schedule): len(tree) for row, tree in zip(rows, trees, strict=True)}
    reached: dict[int, list[int]] = {}
    for row, path in zip(rows, paths, strict=True):
        if path:
            reached.setdefault(id(row.schedule), []).append(path[-1])
    for key, ends in reached.items():
        largest = nodes[key] == max(nodes.values())
        schedules[key].observe(ends, seconds if largest else None, len(rows))


def events_of(
    groups: Sequence[Group],
    rows: Sequence[Row],
    paths: Sequence[Sequence[int]],
    delivered: Sequence[list[int]],
    logits: Tensor,
    timing: StepTiming,
) -> list[Event]:
    """Return an event for what each row got from a step.

    Args:
        paths: accepted nodes of each row.
        delivered: tokens that each row took.
        logits: [B, N, V] of the base model after each node.
    """
    scores: dict[int, Tensor] = {}
    verified: dict[int, Candidates] = {}
    nodes = {place: len(group.tree) for group in groups for place in group.places}
    for group in groups:
        if group.scores is not None:
            scores.update(zip(group.places, group.scores, strict=True))
        if timing.nodes:
            verified.update(candidates(group, paths, delivered))
    made = []
    for place, (row, path, new) in enumerate(zip(rows, paths, delivered, strict=True)):
        before = list(path[: len(new)])  # a token's distribution is that after the node before it
        made.append(
            Event(
                row,
                new,
                row.finish_reason,
                logprobs(row, logits[place], before, new),
                timing,
                scores[place][before] if row.request.scores else None,
                logits[place][before].float() if row.request.logits else None,
                verified.get(place),
                nodes=nodes[place] if timing.nodes else 0,
                accepted=min(max(0, len(path) - 1), len(new)),  # a path begins with the root
            )
        )
    return made


def candidates(
    group: Group, paths: Sequence[Sequence[int]], delivered: Sequence[list[int]]
) -> dict[int, Candidates]:
    """Return the verified tree of each row whose request wants it, by the row's place."""
    found = {}
    for place, row, tokens in zip(group.places, group.rows, group.draft.tokens, strict=True):
        if row.request.candidates:
            path = list(paths[place][: 1 + len(delivered[place])])
            found[place] = Candidates(group.tree, tokens.tolist(), path)
    return found


def logprobs(
    row: Row, logits: Tensor, before: list[int], tokens: Sequence[int]
) -> list[TokenLogprobs] | None:
    """Return the log-probabilities of a row's new tokens, if its request wants them.

    Args:
        logits: [N, V] of the base model after each node.
        before: the node before each token.
    """
    if row.request.logprobs is None:
        return None
    if not tokens:
        return []
    log_p = logits[before].float().log_softmax(-1)
    chosen = log_p.gather(1, torch.tensor([[each] for each in tokens], device=log_p.device))
    best = log_p.topk(row.request.logprobs, dim=-1)
    return [
        TokenLogprobs(token, logprob, tuple(zip(ids, values, strict=True)))
        for token, (logprob,), ids, values in zip(
            tokens, chosen.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
