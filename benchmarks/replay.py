"""`python -m benchmarks.replay`: the embedded model's acceptances at the latencies of a real
model's proportions.

The inflated embedded model has a small vocabulary, six layers and a small cache, which may flatter
it. Here a Llama of 100 million random parameters with twelve layers, grouped keys and values and a
vocabulary of 32 thousand decodes as many tokens, and at every position as many candidates are
accepted as the embedded model's heads had right there.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from medusa import demo
from medusa.calibration.recording import Recording, record
from medusa.calibration.search import joint_tree
from medusa.core.acceptance import Acceptance, Draft, Generators, Greedy, longest
from medusa.core.engine import PLAIN, decode
from medusa.core.model import TreeModel
from medusa.core.request import DecodingStats, Row
from medusa.core.schedule import FixedTree
from medusa.core.tree import CandidateTree
from medusa.evaluation.prompts import calibration_prompts
from medusa.evaluation.report import results_folder, write_json
from medusa.hardware.provenance import provenance
from medusa.loading import MedusaModel

from .speed import INFLATED_WIDTH

PROPORTIONS = LlamaConfig(
    vocab_size=32_000,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=4,
    tie_word_embeddings=True,
)
MODELS = ("inflated", "shared lm_head", "own lm_heads")


@dataclass
class Replayed(Greedy):
    """Greedy acceptance of recorded texts: the work is Greedy's, which nodes agree is looked up.

    Args:
        recording: of greedy decoding, so that every credit is 0 or 1.
        place: the position in the recording after which the next step starts.
    """

    recording: Recording
    place: int = 0

    def accept(
        self, tree: CandidateTree, draft: Draft, logits: Tensor, generators: Generators
    ) -> Acceptance:
        target = logits.argmax(-1)
        depth = tree.depth[1:] - 1
        agrees = torch.ones_like(draft.tokens, dtype=torch.bool)
        agrees[:, 1:] = self.recording.credit[self.place, depth, tree.rank[1:]] > 0
        verdict = longest(tree, agrees, target)
        self.place += int(verdict.count)
        return verdict


def _reached(last: int, ids: list[int]) -> bool:
    return len(ids) >= last


def replay(
    model: TreeModel, recording: Recording, context: int, tree: CandidateTree, texts: int
) -> list[DecodingStats]:
    """Decode as many tokens as each of the first texts has, accepting what was recorded."""
    found, begin = [], 0
    for length in recording.lengths[:texts]:
        ids = torch.arange(context).remainder(model.heads.config.vocab_size).tolist()
        last = context + length + 1
        row = Row(ids, last, partial(_reached, last))
        policy, stats = Replayed(recording, begin - 1), DecodingStats()
        for _ in decode(model, [row], policy, FixedTree(tree), stats):
            pass
        found.append(stats)
        begin += length
    return found


def build(name: str) -> TreeModel:
    """One of `MODELS`, in float32."""
    if name == "inflated":
        return demo.load(inflate=INFLATED_WIDTH, all_heads=True)[0]
    torch.manual_seed(0)
    base = LlamaForCausalLM(PROPORTIONS).eval()
    return MedusaModel.from_base(base, num_heads=5, own_lm_head=name == "own lm_heads")


def compare(
    model: TreeModel, recording: Recording, options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Speed of trees of several sizes over plain decoding, text by text and by turns."""
    trees = {nodes: joint_tree(recording, nodes) for nodes in options.nodes}
    every = {1: PLAIN, **trees}
    rounds: list[dict[int, list[DecodingStats]]] = []
    for number in track(range(options.rounds + 1), "rounds", console=console):
        sizes = list(every)[number % len(every) :] + list(every)[: number % len(every)]
        texts = options.texts if number else 1  # the first makes everything ready
        rounds.append(
            {
                nodes: replay(model, recording, options.context, every[nodes], texts)
                for nodes in sizes
            }
        )
    found = {}
    for nodes in every:
        ratios = [_seconds(each[1]) / _seconds(each[nodes]) for each in rounds[1:]]
        runs = [stats for each in rounds[1:] for stats in each[nodes]]
        found[str(nodes)] = {
            "acceleration_rate": sum(stats.tokens for stats in runs)
            / sum(stats.steps for stats in runs),
            "step_ms": 1000
            * statistics.median(second for stats in runs for second in stats.step_seconds),
            "speedup": statistics.median(ratios),
            "speedup_spread": (min(ratios), max(ratios)),
        }
    return {"parameters": sum(each.numel() for each in model.base.parameters()), "nodes": found}


def _seconds(runs: list[DecodingStats]) -> float:
    return sum(stats.decoding_seconds for stats in runs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--nodes", nargs="+", type=int, default=[2, 4, 6, 8, 12, 16, 24])
    parser.add_argument("--texts", type=int, default=12, help="recorded texts to replay")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--context", type=int, default=256, help="tokens of the prompts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=results_folder, default="benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console, errors = Console(width=120), Console(stderr=True)
    embedded, tokenizer = demo.load(all_heads=True)
    prompts = calibration_prompts(tokenizer, max(60, options.texts))
    recording = record(embedded, prompts, {"max_new_tokens": 256, "do_sample": False})
    report: dict[str, Any] = {"provenance": provenance(), "context": options.context, "models": {}}
    shown = Table("model", "parameters", "nodes", "tokens/step", "step ms", "speedup over plain")
    for name in options.models:
        report["models"][name] = found = compare(build(name), recording, options, errors)
        for nodes, each in found["nodes"].items():
            low, high = each["speedup_spread"]
            shown.add_row(
                name,
                f"{found['parameters'] / 1e6:.0f}M",
                nodes,
                f"{each['acceleration_rate']:.2f}",
                f"{each['step_ms']:.1f}",
                f"{each['speedup']:.2f} ({low:.2f} to {high:.2f})",
            )
    console.print(shown)
    console.print(f"written to {write_json(options.output, report, 'replay')}")


if __name__ == "__main__":
    main()
