"""`python -m benchmarks.replay`: the embedded model's acceptances at a real model's step times.

The inflated embedded model has a small vocabulary, six layers and a small cache, which may flatter
it. Here a Llama of 100 million random parameters with twelve layers, grouped keys and values and a
vocabulary of 32 thousand decodes. At every position it accepts as many candidates as the embedded
model's heads had right there.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from medusa import demo
from medusa.calibration.recording import Recording, record
from medusa.calibration.search import joint_tree
from medusa.core.acceptance import Acceptance, Draft, Generators, Greedy, longest
from medusa.core.engine import PLAIN, Engine
from medusa.core.model import TreeModel
from medusa.core.request import DecodingStats, Request
from medusa.core.schedule import FixedTree
from medusa.core.tree import CandidateTree
from medusa.evaluation.prompts import calibration_prompts
from medusa.hardware.timing import interleaved, paired_ratios, spread
from medusa.loading import MedusaModel

from .harness import argument_parser, new_report, parse_arguments, publish
from .models import INFLATED_WIDTH, llama_100m, random_llama

MODELS = ("inflated", "shared lm_head", "own lm_heads")


@dataclass(eq=False)
class ReplayedGreedy(Greedy):
    """Greedy acceptance that does Greedy's work, but takes from a recording which nodes agree.

    Attributes:
        recording: a recording of greedy decoding, in which every credit is 0 or 1.
        place: the position in the recording after which the next step starts.
    """

    recording: Recording
    place: int = 0

    def accept(
        self, tree: CandidateTree, draft: Draft, logits: Tensor, generators: Generators
    ) -> Acceptance:
        """Return the recorded path, and advance in the recording by its tokens."""
        target = logits.argmax(-1)
        depth = tree.depth[1:] - 1
        agrees = torch.ones_like(draft.tokens, dtype=torch.bool)
        agrees[:, 1:] = self.recording.credit[self.place, depth, tree.rank[1:]] > 0
        accepted = longest(tree, agrees, target)
        self.place += int(accepted.count)
        return accepted


def replay(
    model: TreeModel, recording: Recording, context: int, tree: CandidateTree, texts: int
) -> list[DecodingStats]:
    """Decode as many tokens as each of the first texts has, accepting the recorded nodes.

    Args:
        context: number of tokens of the prompt.
        texts: number of recorded texts that are replayed.
    """
    runs, begin = [], 0
    for length in recording.lengths[:texts]:
        ids = torch.arange(context).remainder(model.heads.config.vocab_size).tolist()
        # the prefill's acceptance advances by one, to the first position of the text
        policy, engine = ReplayedGreedy(recording, begin - 1), Engine(model)
        row = engine.submit(
            Request(ids, context + length + 1, policy=policy, schedule=FixedTree(tree))
        )
        while not engine.idle:
            engine.step()
        engine.close()
        runs.append(row.stats)
        begin += length
    return runs


def load_model(name: str) -> TreeModel:
    """Return one of `MODELS`, in float32."""
    if name == "inflated":
        return demo.load(inflate=INFLATED_WIDTH, all_heads=True)[0]
    base = random_llama(llama_100m())
    return MedusaModel.from_base(base, num_heads=5, own_lm_head=name == "own lm_heads")


def replay_trees(
    model: TreeModel, recording: Recording, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the speed of trees of several sizes over plain decoding, replayed by turns."""
    trees = {1: PLAIN, **{nodes: joint_tree(recording, nodes) for nodes in options.nodes}}
    calls: dict[int, Callable[[], list[DecodingStats]]] = {
        nodes: partial(replay, model, recording, options.context, tree, options.texts)
        for nodes, tree in trees.items()
    }
    for tree in trees.values():
        replay(model, recording, options.context, tree, 1)  # a warm-up, which does not count
    rounds = interleaved(calls, options.rounds, first=1)
    seconds = {nodes: list(map(_total_seconds, runs)) for nodes, runs in rounds.items()}
    return {
        "parameters": sum(each.numel() for each in model.base.parameters()),
        "nodes": {
            str(nodes): _figures(
                [stats for runs in rounds[nodes] for stats in runs],
                paired_ratios(seconds[1], seconds[nodes]),
            )
            for nodes in trees
        },
    }


def _total_seconds(runs: Sequence[DecodingStats]) -> float:
    return sum(stats.decoding_seconds for stats in runs)


def _figures(runs: Sequence[DecodingStats], speedups: Sequence[float]) -> dict[str, Any]:
    """Return the figures of one tree from all its runs and its speedup in each round."""
    step_seconds = [seconds for stats in runs for seconds in stats.step_seconds]
    return {
        "acceleration_rate": sum(stats.tokens for stats in runs)
        / sum(stats.steps for stats in runs),
        "step_ms": 1000 * statistics.median(step_seconds),
        "speedup": statistics.median(speedups),
        "speedup_spread": spread(speedups),
    }


def replay_table(models: dict[str, Any]) -> Table:
    """Return a table with a row for each model and tree size."""
    table = Table("model", "parameters", "nodes", "tokens/step", "step ms", "speedup over plain")
    for name, result in models.items():
        for nodes, figures in result["nodes"].items():
            low, high = figures["speedup_spread"]
            table.add_row(
                name,
                f"{result['parameters'] / 1e6:.0f}M",
                nodes,
                f"{figures['acceleration_rate']:.2f}",
                f"{figures['step_ms']:.1f}",
                f"{figures['speedup']:.2f} ({low:.2f} to {high:.2f})",
            )
    return table


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__, rounds=3, rounds_help="replays of all texts with each tree")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), help="models (default: all)"
    )
    parser.add_argument(
        "--nodes",
        nargs="+",
        type=int,
        default=[2, 4, 6, 8, 12, 16, 24],
        help="tree sizes beside plain decoding",
    )
    parser.add_argument("--texts", type=int, default=12, help="recorded texts to replay")
    parser.add_argument("--context", type=int, default=256, help="tokens of the prompts")
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    embedded, tokenizer = demo.load(all_heads=True)
    prompts = calibration_prompts(tokenizer, max(60, options.texts))
    recording = record(embedded, prompts, {"max_new_tokens": 256, "do_sample": False})
    models = {name: replay_trees(load_model(name), recording, options) for name in options.models}
    report = new_report(context=options.context, models=models)
    publish(options, report, "replay", replay_table(models))


if __name__ == "__main__":
    main()
