"""`python -m benchmarks.wrong_heads`: what decoding costs when the heads are never right.

The embedded model's heads are replaced by noise of the same size. Answers are long; methods take
turns.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from rich.console import Console
from torch import nn

from medusa import demo
from medusa.core.engine import PLAIN
from medusa.evaluation.report import results_folder, write_json
from medusa.hardware.provenance import provenance
from medusa.loading import MedusaModel

TRIES = ("plain", "adaptive", "always the tree")


def measure(
    model: MedusaModel, prompts: list[torch.Tensor], tokens: int, repeats: int
) -> dict[str, Any]:
    """Seconds and steps of decoding plainly, as the library does by default, and with the tree in
    every step.
    """
    options: dict[str, Any] = {
        "max_new_tokens": tokens + 1,
        "min_new_tokens": tokens + 1,
        "do_sample": False,
    }
    trees = {"plain": PLAIN, "adaptive": None, "always the tree": model.tree}
    seconds: dict[str, list[float]] = {name: [] for name in TRIES}
    steps: dict[str, int] = {}
    texts: dict[str, list[int]] = {}
    for repeat in range(repeats):
        for number, prompt in enumerate(prompts):
            for place in range(len(TRIES)):
                name = TRIES[(place + repeat + number) % len(TRIES)]
                session = model.steps(prompt, tree=trees[name], **options)
                for _ in session:
                    pass
                seconds[name].append(session.stats.decoding_seconds)
                steps[name] = session.stats.steps
                texts[name] = session.rows[0].ids
            if not texts["plain"] == texts["adaptive"] == texts["always the tree"]:
                raise RuntimeError("texts differ")
    losses = {
        name: [own / plain - 1 for own, plain in zip(each, seconds["plain"], strict=True)]
        for name, each in seconds.items()
    }
    return {
        "tokens": tokens,
        "steps": steps,
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "loss": statistics.median(losses["adaptive"]),
        "loss_spread": [min(losses["adaptive"]), max(losses["adaptive"])],
        "loss_without_adapting": statistics.median(losses["always the tree"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=results_folder, default="benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = demo.load(all_heads=True)
    torch.manual_seed(0)
    for parameter in model.heads.parameters():
        nn.init.normal_(parameter, std=1.0)
    prompts = [
        tokenizer(task.prompt, return_tensors="pt")["input_ids"]
        for task in demo.calibration_tasks(options.prompts)
    ]
    measure(model, prompts[:1], 50, 1)
    report: dict[str, Any] = {"provenance": provenance(), "nodes": len(model.tree)}
    report |= measure(model, prompts, options.tokens, options.repeats)
    file = write_json(options.output, report, "wrong-heads")
    Console().print(
        f"heads that are never right: {report['loss']:+.1%} time against plain decoding over "
        f"{options.tokens} tokens "
        f"(from {report['loss_spread'][0]:+.1%} to {report['loss_spread'][1]:+.1%}); "
        f"{report['loss_without_adapting']:+.1%} with the tree in every step\nwritten to {file}"
    )


if __name__ == "__main__":
    main()
