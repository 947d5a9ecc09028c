"""`python -m benchmarks.trees`: the paper's figure 4, dense trees against optimised ones.

Every tree is replayed on recorded answers, and its speed predicted from measured step times. Some
trees are decoded and timed. The results hold predictions and measurements side by side. The
embedded model answers its own tasks, and SmolLM2 the questions of MT-Bench (`--models smollm2
--questions question.jsonl`).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from medusa import demo
from medusa.calibration.choice import choose, predictions
from medusa.calibration.drawing import check_library, save
from medusa.calibration.figures import Point, draw_trees, replayed, trees
from medusa.calibration.latency import SIZES, Latency, measure_latency, usual_contexts
from medusa.calibration.recording import Recording, record
from medusa.calibration.search import joint_tree
from medusa.calibration.settings import PromptIds
from medusa.calibration.trial import measure_tree
from medusa.core.model import TreeModel
from medusa.core.tree import CandidateTree
from medusa.data.prompts import encode
from medusa.demo import smollm2
from medusa.evaluation.prompts import calibration_prompts
from medusa.evaluation.suites import read_suite
from medusa.loading import MedusaModel, NamedModel, load

from .harness import (
    ROOT,
    argument_parser,
    new_report,
    parse_arguments,
    publish_for_device,
    results_folder,
)
from .models import EMBEDDED_MODELS

SMOLLM2 = "smollm2"
BUDGETS = {
    "embedded": (2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64),
    "inflated": (2, 4, 6, 8, 12, 16, 24, 32),
    SMOLLM2: (4, 8, 16, 32, 64),
}
"""Sizes of the joint trees that are decoded."""
LARGEST_DECODED = 64
"""Maximum size of the dense trees that are decoded."""
LARGEST = 256
"""Maximum size of the trees that are replayed."""
FIGURES = ROOT / "docs" / "figures"
RATES = ("predicted_rate", "rate", "predicted_speedup", "speedup")


@dataclass(frozen=True)
class TreeStudy:
    """A model with the data to predict and to measure its trees.

    Attributes:
        model: the model.
        recording: its heads, recorded along its own answers.
        latency: its step times.
        trial_prompts: token ids of other prompts, to decode with some of the trees.
        arguments: arguments of `generate`.
    """

    model: TreeModel
    recording: Recording
    latency: Latency
    trial_prompts: PromptIds
    arguments: dict[str, Any]

    def decode(self, kind: str, tree: CandidateTree) -> tuple[Point, dict[str, Any]]:
        """Decode with a tree; return its point and its predicted and measured figures."""
        measured = measure_tree(self.model, self.trial_prompts, tree, self.arguments)
        (predicted,) = replayed(self.recording, self.latency, [(kind, tree)])
        point = Point(kind, tree, measured.acceleration_rate, measured.speedup, decoded=True)
        return point, {
            "kind": kind,
            "nodes": len(tree),
            "predicted_rate": predicted.acceleration_rate,
            "rate": measured.acceleration_rate,
            "predicted_speedup": predicted.speedup,
            "speedup": measured.speedup,
        }

    def claims(self, points: Sequence[Point], decoded: Sequence[Point]) -> dict[str, Any]:
        """Return the figures behind the paper's claims about optimised and dense trees.

        Args:
            points: all trees, replayed.
            decoded: the trees that were decoded.
        """
        best = choose(predictions(self.recording, self.latency, LARGEST_DECODED))
        at_best = min(
            (point for point in decoded if point.kind == "joint"),
            key=lambda point: abs(len(point.tree) - len(best.tree)),
        )
        optimised = next(
            point for point in points if point.kind == "joint" and len(point.tree) == 64
        )
        dense_rates = [point.acceleration_rate for point in points if point.kind == "dense"]
        return {
            "optimised_64_rate": optimised.acceleration_rate,
            "dense_up_to_256_best_rate": max(dense_rates),
            "dense_trees": len(dense_rates),
            "chosen_nodes": len(at_best.tree),
            "chosen_speedup": at_best.speedup,
            "best_speedup_of_all_decoded": max(point.speedup for point in decoded),
        }


def load_model(name: str) -> tuple[MedusaModel, PreTrainedTokenizerBase]:
    """Load a model of `BUDGETS` with all its heads."""
    if name == SMOLLM2:
        heads = NamedModel.find(smollm2.heads_folder(), smollm2.fetch())
        return load(heads, all_heads=True)
    return demo.load(inflate=EMBEDDED_MODELS[name], all_heads=True)


def prompts_of(
    name: str, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace
) -> PromptIds:
    """Return token ids of prompts, in an order in which kinds of prompts are mixed."""
    if name != SMOLLM2:
        return calibration_prompts(tokenizer, options.prompts + options.decoded)
    questions = read_suite("mt-bench", options.questions)
    ids = [encode(tokenizer, list(question.messages)) for question in questions]
    return random.Random(0).sample(ids, len(ids))


def prepare_study(name: str, options: argparse.Namespace) -> TreeStudy:
    """Load a model, record its heads and time its steps."""
    model, tokenizer = load_model(name)
    arguments = {"max_new_tokens": options.max_new_tokens, "do_sample": False}
    ids = prompts_of(name, tokenizer, options)
    others, recorded = ids[: options.decoded], ids[options.decoded :][: options.prompts]
    recording = record(model, recorded, arguments, ranks=32)
    sizes = [*(size for size in SIZES if size <= 128), 192, LARGEST]
    latency = measure_latency(
        model,
        [token for prompt in recorded for token in prompt],
        [joint_tree(recording, size) for size in sizes],
        arguments,
        contexts=usual_contexts(recorded, recording.lengths),
    )
    return TreeStudy(model, recording, latency, others, arguments)


def study_trees(
    name: str, options: argparse.Namespace, console: Console
) -> tuple[dict[str, Any], list[Point]]:
    """Return a model's results and the points of its figure."""
    study = prepare_study(name, options)
    every = list(trees(study.recording, LARGEST, dense=10**6))
    points = replayed(study.recording, study.latency, every)
    dense = [tree for kind, tree in every if kind == "dense"]
    sample = [dense[place * len(dense) // options.dense] for place in range(options.dense)]
    chosen = [("joint", joint_tree(study.recording, size)) for size in BUDGETS[name]]
    chosen += [("dense", tree) for tree in sample if len(tree) <= LARGEST_DECODED]
    decoded, outcomes = [], []
    for kind, tree in track(chosen, f"{name}: decoding", console=console):
        point, outcome = study.decode(kind, tree)
        decoded.append(point)
        outcomes.append(outcome)
    result = {
        "claims": study.claims(points, decoded),
        "latency": study.latency.curve(),
        "decoded": outcomes,
    }
    return result, [*points, *decoded]


def outcome_table(name: str, outcomes: Sequence[dict[str, Any]]) -> Table:
    """Return a table of predicted and measured figures, one row for each decoded tree."""
    table = Table("kind", "nodes", *(rate.replace("_", " ") for rate in RATES), title=name)
    for outcome in outcomes:
        rates = (f"{outcome[rate]:.2f}" for rate in RATES)
        table.add_row(outcome["kind"], str(outcome["nodes"]), *rates)
    return table


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        choices=BUDGETS,
        default=list(EMBEDDED_MODELS),
        help="models (default: embedded and inflated)",
    )
    parser.add_argument("--questions", help=f"MT-Bench's question.jsonl, for {SMOLLM2}")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, help="maximum length of answers (default: 256)"
    )
    parser.add_argument("--prompts", type=int, default=120, help="prompts to record")
    parser.add_argument(
        "--decoded", type=int, default=12, help="other prompts, to decode with some of the trees"
    )
    parser.add_argument(
        "--dense", type=int, default=30, help="dense trees to choose from for decoding"
    )
    parser.add_argument(
        "--figures",
        type=results_folder,
        default=str(FIGURES),
        help="folder for the figures (default: docs/figures)",
    )
    options = parse_arguments(parser)
    if SMOLLM2 in options.models and options.questions is None:
        parser.error(f"--models {SMOLLM2} needs --questions, MT-Bench's question.jsonl")
    return options


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    check_library()
    report = new_report(results={})
    measured = report["provenance"]
    shown: list[Any] = []
    for name in options.models:
        result, points = study_trees(name, options, Console(stderr=True))
        report["results"][name] = result
        title = f"{name} model, {measured['device']}, {options.threads} threads, {measured['date']}"
        save(draw_trees(points, title), options.figures / f"trees-{name}.png")
        shown += [outcome_table(name, result["decoded"]), result["claims"]]
    kind = "-".join(["trees", *options.models])
    publish_for_device(options, report, kind, *shown)


if __name__ == "__main__":
    main()
