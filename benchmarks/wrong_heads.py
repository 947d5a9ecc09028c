"""`python -m benchmarks.wrong_heads`: the cost of decoding with heads that are never right.

The embedded model's heads are replaced by noise. Long answers are decoded plainly, with the
adaptive choice of trees that is the library's default, and with the tree in every step.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch
from torch import nn

from medusa import demo
from medusa.core.engine import PLAIN
from medusa.evaluation.methods import Run, medusa
from medusa.hardware.timing import interleaved, paired_ratios, spread
from medusa.loading import MedusaModel

from .harness import argument_parser, medians, new_report, parse_arguments, publish

MODES = ("plain", "adaptive", "always the tree")


def time_wrong_heads(
    model: MedusaModel, prompts: list[torch.Tensor], tokens: int, repeats: int
) -> dict[str, Any]:
    """Return seconds and steps of each decoding mode, and the time lost against plain decoding.

    Args:
        prompts: token ids [1, P] of each prompt.
        tokens: number of tokens decoded after the first.
        repeats: runs of each prompt and mode.

    Raises:
        RuntimeError: the modes give different tokens.
    """
    options: dict[str, Any] = {
        "max_new_tokens": tokens + 1,
        "min_new_tokens": tokens + 1,
        "do_sample": False,
    }
    trees = {"plain": PLAIN, "adaptive": None, "always the tree": model.tree}
    runs: dict[str, list[Run]] = {mode: [] for mode in MODES}
    for number, prompt in enumerate(prompts):
        calls = {
            mode: partial(medusa, model, prompt, {**options, "tree": trees[mode]}) for mode in MODES
        }
        for mode, repeated in interleaved(calls, repeats, first=number).items():
            runs[mode] += repeated
            if any(run.ids != runs["plain"][-1].ids for run in repeated):
                raise RuntimeError("texts differ")
    seconds = {mode: [run.seconds for run in mode_runs] for mode, mode_runs in runs.items()}
    losses = {
        mode: [ratio - 1 for ratio in paired_ratios(own, seconds["plain"])]
        for mode, own in seconds.items()
    }
    return {
        "tokens": tokens,
        "steps": {mode: mode_runs[-1].steps for mode, mode_runs in runs.items()},
        "seconds": medians(seconds),
        "loss": statistics.median(losses["adaptive"]),
        "loss_spread": list(spread(losses["adaptive"])),
        "loss_without_adapting": statistics.median(losses["always the tree"]),
    }


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=1000, help="tokens of an answer")
    parser.add_argument("--prompts", type=int, default=3, help="number of prompts")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each prompt and mode")
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    model, tokenizer = demo.load(all_heads=True)
    torch.manual_seed(0)
    for parameter in model.heads.parameters():
        nn.init.normal_(parameter, std=1.0)
    prompts = [
        tokenizer(task.prompt, return_tensors="pt")["input_ids"]
        for task in demo.calibration_tasks(options.prompts)
    ]
    time_wrong_heads(model, prompts[:1], 50, 1)  # a warm-up, which does not count
    report = new_report(nodes=len(model.tree))
    report |= time_wrong_heads(model, prompts, options.tokens, options.repeats)
    low, high = report["loss_spread"]
    text = (
        f"heads that are never right: {report['loss']:+.1%} time against plain decoding over "
        f"{options.tokens} tokens (from {low:+.1%} to {high:+.1%}); "
        f"{report['loss_without_adapting']:+.1%} with the tree in every step"
    )
    publish(options, report, "wrong-heads", text)


if __name__ == "__main__":
    main()
