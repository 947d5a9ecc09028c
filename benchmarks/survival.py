"""`python -m benchmarks.survival --questions FILE`: would trees chosen by confidence pay?

A head states how probable each of its candidates is. The product along a path is the probability
that the node survives, as the heads see it. Nodes could be chosen anew in each step: the most
probable ones of all requests, as many as make the step give the most tokens a second.

SmolLM2-135M-Instruct answers the first turns of MT-Bench's questions plainly (FastChat,
`llm_judge/data/mt_bench/question.jsonl`). Decoding these answers is then replayed for 1, 4 and 16
requests at a time, with fixed trees and with nodes chosen in each step. Steps take the times of the
stored calibration, in which more requests are taken for as many more nodes. Choosing is free here,
and each request pays only for its own nodes, so that a real step could only be slower.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from medusa.core.engine import PLAIN
from medusa.core.schedule import Calibration, interpolated
from medusa.core.tree import CandidateTree
from medusa.demo import smollm2
from medusa.loading import MedusaModel, NamedModel, load
from medusa.text import encode_chat

from .harness import (
    add_questions,
    argument_parser,
    first_turns,
    new_report,
    parse_arguments,
    publish_for_device,
)

LARGEST = 64
"""Nodes of the tree from which nodes are chosen."""
FIXED = (2, 4, 8, 16)
"""Nodes of the fixed trees."""
ROWS = (1, 4, 16)
"""Numbers of requests at a time."""
POWERS = (1.0, 1.5, 2.0)
"""Powers to which stated probabilities are raised, because the heads are too sure of themselves."""
CONFIDENCES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Bounds of the groups in which the first head's best candidate is judged."""


@dataclass(frozen=True)
class Answer:
    """The heads' statements along an answer of T tokens, about a tree of N nodes.

    Attributes:
        survival: [T, N] stated probability that each node is accepted.
        accepted: [T, N] whether greedy decoding accepts it.
    """

    survival: Tensor
    accepted: Tensor


Choice = Callable[[Tensor], tuple[Tensor, float]]
"""Returns the nodes [R, N] that a step verifies and its milliseconds, given survival [R, N]."""


@torch.inference_mode()
def answer(model: MedusaModel, ids: Tensor, tree: CandidateTree, length: int) -> Answer:
    """Answer a prompt [1, P] plainly, and record what the heads say of each node on the way."""
    text = model.generate(ids, max_new_tokens=length, do_sample=False, tree=PLAIN)[0]
    new = text[ids.shape[1] :]
    hidden = model.hidden_states(text[None])[0, ids.shape[1] - 1 : -1]
    best = model.draft_logits(hidden).float().log_softmax(-1).topk(1 + int(tree.rank.max()), -1)
    survival = torch.ones(len(new), len(tree))
    accepted = torch.ones(len(new), len(tree), dtype=torch.bool)
    for node in range(1, len(tree)):
        depth, rank, parent = (int(each[node]) for each in (tree.depth, tree.rank, tree.parent))
        later = torch.cat([new[depth:], new.new_full((depth,), -1)])[: len(new)]
        survival[:, node] = survival[:, parent] * best.values[:, depth - 1, rank].exp()
        right = best.indices[:, depth - 1, rank] == later
        accepted[:, node] = accepted[:, parent] & right
    return Answer(survival, accepted)


def step_ms(calibration: Calibration, rows: int, nodes: int) -> float:
    """Return the milliseconds of a step of so many nodes of all rows; as many as rows is plain."""
    latency = calibration.latency
    # the curve's times of two nodes and more hold the time of drafting, which plain steps lack
    drafting = latency[2] - latency[1]
    if nodes > rows:
        return interpolated(latency, nodes)
    return latency[1] if rows == 1 else max(latency[1], interpolated(latency, rows) - drafting)


def fixed(calibration: Calibration, rows: int, largest: CandidateTree, nodes: int) -> Choice:
    """Return the choice of always the same tree."""
    own = set(CandidateTree.from_accuracies(calibration.accuracies, nodes).paths)
    mask = torch.tensor([path in own for path in largest.paths]).expand(rows, -1)
    duration = step_ms(calibration, rows, rows * nodes)
    return lambda survival: (mask, duration)


def by_survival(calibration: Calibration, rows: int, power: float) -> Choice:
    """Return the choice of the most probable nodes of all rows, while tokens a second rise."""
    # a step that verifies no candidate has drafted all the same
    sizes = range(rows, rows * LARGEST + 1)
    durations = torch.tensor([step_ms(calibration, rows, max(rows + 1, size)) for size in sizes])

    def choose(survival: Tensor) -> tuple[Tensor, float]:
        candidates = survival[:, 1:] ** power
        gains, order = candidates.flatten().sort(descending=True, stable=True)
        tokens = rows + torch.cat([gains.new_zeros(1), gains.cumsum(0)])
        most = int((tokens / durations[: len(tokens)]).argmax())
        mask = torch.zeros_like(candidates, dtype=torch.bool).flatten()
        mask[order[:most]] = True
        roots = torch.ones(rows, 1, dtype=torch.bool)
        return torch.cat([roots, mask.view_as(candidates)], 1), float(durations[most])

    return choose


def replay(
    answers: Sequence[Answer], rows: int, depth: Tensor, choose: Choice
) -> tuple[float, float]:
    """Decode as many answers at a time as there are rows; return tokens and milliseconds a step."""
    following, place = iter(answers), [0] * rows
    current = [next(following) for _ in range(rows)]
    tokens, steps, duration, ended = 0, 0, 0.0, False
    while not ended:
        here = list(zip(current, place, strict=True))
        mask, step = choose(torch.stack([each.survival[at] for each, at in here]))
        accepted = torch.stack([each.accepted[at] for each, at in here])
        steps, duration = steps + 1, duration + step
        for row, count in enumerate((1 + (depth * (accepted & mask)).amax(1)).tolist()):
            left = len(current[row].survival) - place[row]
            tokens, place[row] = tokens + min(count, left), place[row] + count
            if count >= left:
                another = next(following, None)
                current[row], place[row] = another or current[row], 0
                ended = ended or another is None
    return tokens / steps, duration / steps


def measure(answers: Sequence[Answer], calibration: Calibration, largest: CandidateTree) -> Any:
    """Return a row for each number of requests and each way to choose nodes."""
    rows = []
    for count in ROWS:
        asked = list(islice(cycle(answers), count * len(answers)))
        ways = {f"{nodes} nodes": fixed(calibration, count, largest, nodes) for nodes in FIXED}
        for power in POWERS:
            ways[f"by survival ^ {power:g}"] = by_survival(calibration, count, power)
        plain = count / step_ms(calibration, count, count)
        for name, choose in ways.items():
            tokens, duration = replay(asked, count, torch.as_tensor(largest.depth), choose)
            found = {"tokens_per_step": tokens / count, "step_ms": duration}
            speed = tokens / duration
            rows.append({"rows": count, "nodes": name, **found, "over_plain": speed / plain})
    return rows


def reliability(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return how often the first head's best candidate is right, by its stated probability."""
    stated = torch.cat([each.survival[:, 1] for each in answers])
    right = torch.cat([each.accepted[:, 1] for each in answers]).float()
    found = []
    for low, high in pairwise(CONFIDENCES):
        own = (stated >= low) & (stated < high if high < 1 else stated <= high)
        if own.any():
            shares = {"share": own.float().mean(), "right": right[own].mean()}
            found.append({"from": low, "to": high, **{k: float(v) for k, v in shares.items()}})
    return found


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__)
    add_questions(parser)
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    named = NamedModel.find(smollm2.heads_folder(), smollm2.fetch(say=print))
    model, tokenizer = load(named, all_heads=True)
    largest = CandidateTree.from_accuracies(model.calibration.accuracies, LARGEST)
    prompts = [
        encode_chat(tokenizer, each.messages)
        for each in first_turns(options.questions, options.limit)
    ]
    answers = [answer(model, each, largest, options.max_new_tokens) for each in prompts]
    rows, groups = measure(answers, model.calibration, largest), reliability(answers)
    table = Table("requests", "nodes of a request", "tokens / step", "ms / step", "/ plain")
    for row in rows:
        figures = (f"{row[name]:.2f}" for name in ("tokens_per_step", "step_ms", "over_plain"))
        table.add_row(str(row["rows"]), row["nodes"], *figures)
    lines = [
        f"the first head states {each['from']:g} to {each['to']:g} in {each['share']:.0%} of the "
        f"steps, and is right in {each['right']:.0%} of them"
        for each in groups
    ]
    report = new_report(model=smollm2.HUB_ID, answers=len(answers), rows=rows, reliability=groups)
    publish_for_device(options, report, "smollm2-survival", table, *lines)


if __name__ == "__main__":
    main()
