"""The decoding loop: prefill, then draft, verify, accept, keep (paper, section 2.1 and figure 1).

Token ids in, token ids out, one step at a time; text, stopping rules and configuration live in
`generation`. Plain decoding is the same loop with a tree that is only its root.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .acceptance import Acceptance, AcceptancePolicy, Draft, Generators
from .model import TreeModel
from .processing import TreeProcessors
from .schedule import Pace
from .tree import CandidateTree

PLAIN = CandidateTree()
"""The tree of plain decoding: the root alone."""


@dataclass
class DecodingStats:
    """What a run gave and what it cost, in the terms of the paper's appendix B.1.

    Attributes:
        steps: decoding steps after the prefill.
        tokens: tokens delivered after the prefill, over all rows.
        accepted: accepted[n] counts the times a row got n tokens from a step.
        prefill_seconds: time to the first token.
        step_seconds: duration of each step.
        step_nodes: nodes verified in each step; 1 where it decoded plainly.
    """

    steps: int = 0
    tokens: int = 0
    accepted: Counter[int] = field(default_factory=Counter)
    prefill_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    step_nodes: list[int] = field(default_factory=list)

    def count(self, delivered: Sequence[Sequence[int]], nodes: int, seconds: float) -> None:
        """Take one step into account."""
        self.steps += 1
        self.tokens += sum(map(len, delivered))
        self.accepted.update(len(tokens) for tokens in delivered if tokens)
        self.step_nodes.append(nodes)
        self.step_seconds.append(seconds)

    @property
    def acceleration_rate(self) -> float:
        """Tokens delivered after the prefill per decoding step of a row; 1 for plain decoding."""
        return self.tokens / max(1, self.accepted.total())

    @property
    def decoding_seconds(self) -> float:
        """Time of all steps, the prefill excluded."""
        return sum(self.step_seconds)


@dataclass
class Row:
    """One sequence under way.

    Attributes:
        ids: the prompt and what has been delivered.
        max_length: no more ids than this will be asked for.
        stop: told the ids after every token, says whether the row ends there.
        processors: the row's logits processors.
        generator: the row's source of randomness; None draws from torch's global one.
    """

    ids: list[int]
    max_length: int
    stop: Callable[[list[int]], bool]
    processors: TreeProcessors = field(default_factory=TreeProcessors)
    generator: torch.Generator | None = None
    finished: bool = False

    def deliver(self, tokens: Sequence[int]) -> list[int]:
        """Take tokens one by one up to where the row ends; returns those taken.

        Raises:
            RuntimeError: a token is -1: there was no distribution to sample it from.
        """
        taken = 0
        while taken < len(tokens) and not self.finished:
            if tokens[taken] < 0:
                raise RuntimeError(
                    "no token can be sampled: the logits hold NaN or infinity, or a processor "
                    "excluded every token"
                )
            self.ids.append(tokens[taken])
            taken += 1
            self.finished = self.stop(self.ids)
        return list(tokens[:taken])


@torch.inference_mode()
def decode(
    model: TreeModel,
    rows: Sequence[Row],
    policy: AcceptancePolicy,
    pace: Pace,
    stats: DecodingStats,
) -> Iterator[list[list[int]]]:
    """Decode until every row has ended; yields each step's new tokens of every row, the prefill's
    first.

    A step delivers the accepted candidates and the base model's own next token, which is the root
    of the next step's tree. When a row ends is its own business.
    """
    started = time.perf_counter()
    generators = [row.generator for row in rows]
    input_ids, attention_mask = left_padded([row.ids for row in rows], model.device)
    needed = max(row.max_length - len(row.ids) for row in rows) + len(pace.largest)
    with model.request_cache(
        input_ids.shape[1] + needed, [row.max_length for row in rows]
    ) as cache:
        logits, hidden = model.prefill(input_ids, attention_mask, cache)
        last = input_ids[:, -1:]
        verdict = policy.accept(
            PLAIN, Draft(last), _process(rows, PLAIN, last, logits[:, None]), generators
        )
        delivered, _ = _deliver(rows, last, verdict)
        stats.prefill_seconds += time.perf_counter() - started
        yield delivered

        while not all(row.finished for row in rows):
            started, tree = time.perf_counter(), pace.tree()
            head_logits = model.draft_logits(hidden, tree.max_depth) if tree.max_depth else None
            draft = _draft(rows, policy, tree, verdict.root, head_logits, generators)
            logits, hiddens = model.verify(draft.tokens, tree, cache)
            verdict = policy.accept(
                tree, draft, _process(rows, tree, draft.tokens, logits), generators
            )
            delivered, accepted = _deliver(rows, draft.tokens, verdict)
            cache.keep(accepted)
            hidden = hiddens[
                torch.arange(len(rows), device=hiddens.device),
                verdict.path[:, -1].to(hiddens.device),
            ]
            pace.observe([path[-1] for path in accepted if path], time.perf_counter() - started)
            stats.count(delivered, len(tree), time.perf_counter() - started)
            yield delivered


def left_padded(prompts: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [B, P] with zeros before shorter prompts, and the mask [B, P] of what is real."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor(
        [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device
    )
    return ids, mask


def _draft(
    rows: Sequence[Row],
    policy: AcceptancePolicy,
    tree: CandidateTree,
    root: Tensor,
    head_logits: Tensor | None,
    generators: Generators,
) -> Draft:
    """The tree's tokens; a tree that is only its root asks nothing of the heads."""
    root = root.clamp_min(0)  # -1 only where a row has ended
    if head_logits is None:
        return Draft(root[:, None])
    if any(row.processors for row in rows):
        scores = head_logits.float()
        head_logits = torch.stack(
            [row.processors.draft(each) for row, each in zip(rows, scores, strict=True)]
        )
    return policy.draft(root, head_logits.to(root.device), tree, generators)


def _process(rows: Sequence[Row], tree: CandidateTree, tokens: Tensor, logits: Tensor) -> Tensor:
    """Base logits [B, N, V] after each row's processors, in float32 as transformers has them."""
    scores = logits.float()
    if not any(row.processors for row in rows):
        return scores
    return torch.stack(
        [
            each if row.finished else row.processors(row.ids, tree, node_tokens, each)
            for row, node_tokens, each in zip(rows, tokens, scores, strict=True)
        ]
    )


def _deliver(
    rows: Sequence[Row], tokens: Tensor, verdict: Acceptance
) -> tuple[list[list[int]], list[list[int]]]:
    """Hand each row its accepted candidates and its next root.

    Returns what each row took, and its accepted nodes from the root down; none of a row that had
    ended before.

    The one place a step waits for the device.
    """
    text = torch.cat(
        [
            tokens.gather(1, verdict.path),
            verdict.path,
            verdict.root[:, None],
            verdict.count[:, None],
        ],
        1,
    )
    delivered, accepted = [], []
    for row, (*numbers, root, count) in zip(rows, text.tolist(), strict=True):
        width = len(numbers) // 2
        accepted.append([] if row.finished else numbers[width : width + count])
        if not row.finished:
            row.processors.advance(accepted[-1][-1])
        delivered.append(row.deliver([*numbers[1:count], root]))
    return delivered, accepted
