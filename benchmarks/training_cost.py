"""`python -m benchmarks.training_cost`: time and memory that training saves by computing less.

Three comparisons:

- the loss in chunks and the loss of whole logits, in memory and speed, for heads with own lm_heads
  and a vocabulary of 32 thousand;
- heads that train on kept hidden states and heads that run the backbone again every epoch, on the
  embedded model inflated to 100 million parameters;
- the heads' loss over a draft vocabulary and over the whole vocabulary, with the shape of
  SmolLM2-135M and random weights.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from medusa import demo
from medusa.core.checks import new_heads
from medusa.core.heads import MedusaConfig, MedusaHeads
from medusa.core.tree import CandidateTree
from medusa.data.examples import collate_rows, numbered_rows
from medusa.hardware.timing import Timed, interleaved, spread, timed
from medusa.training import Example
from medusa.training.hidden import cached_states, collate_states
from medusa.training.losses import medusa1_loss
from medusa.training.recipe import Recipe
from medusa.training.trainer import MedusaTrainer, StageData
from medusa.training.training_model import TrainingModel
from tools.demo_model.recipe import EVEN
from tools.demo_model.stream import varied_tasks
from tools.demo_model.train import chat_example

from .harness import (
    argument_parser,
    in_new_process,
    medians,
    new_report,
    parse_arguments,
    peak_bytes,
    publish,
    seconds_of,
)
from .models import INFLATED_WIDTH

VOCABULARY, NUM_HEADS = 32_000, 5
DECAY = 0.8
OCCURRING = 4_931
"""Tokens of a vocabulary of 49,152 that the answers of a small model used."""
LOSSES = ("whole", "in chunks")
FIRST_SEED = 60_000_000
"""First seed of this benchmark's own tasks."""


def loss_functions(
    threads: int, tokens: int, hidden_size: int
) -> tuple[MedusaHeads, dict[str, Callable[[], Tensor]]]:
    """Return heads, and equation 1 of the same hidden states computed in both ways."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=hidden_size,
        num_hidden_layers=1,
        num_attention_heads=8,
    )
    base = LlamaForCausalLM(config).requires_grad_(False)
    shape = MedusaConfig(NUM_HEADS, 1, hidden_size, VOCABULARY)
    heads = MedusaHeads.from_lm_head(base.lm_head, shape)
    student = TrainingModel(base, heads, DECAY)
    hidden = torch.randn(tokens, hidden_size)
    targets = torch.randint(VOCABULARY, (tokens, 1 + NUM_HEADS))

    def whole() -> Tensor:
        return medusa1_loss(heads(hidden), targets[:, 1:], DECAY)

    def in_chunks() -> Tensor:
        loss: Tensor = student(hidden=hidden, targets=targets)["loss"]
        return loss

    return heads, {"whole": whole, "in chunks": in_chunks}


def peak_memory(name: str, threads: int, tokens: int, hidden_size: int) -> dict[str, float]:
    """Return this process's peak memory in bytes, before and after one loss with its gradients."""
    heads, functions = loss_functions(threads, tokens, hidden_size)
    for parameter in heads.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = peak_bytes()
    functions[name]().backward()
    return {"before": before, "peak": peak_bytes()}


def compare_losses(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the loss in chunks with that of whole logits.

    Memory is measured in a process for each, speed by turns in this one.
    """
    size = (options.threads, options.loss_tokens, options.loss_hidden_size)
    result: dict[str, Any] = {
        "tokens": options.loss_tokens,
        "hidden_size": options.loss_hidden_size,
        **{name: in_new_process(peak_memory, name, *size) for name in LOSSES},
    }
    heads, functions = loss_functions(*size)

    def descend(name: str) -> float:
        heads.zero_grad()
        loss = functions[name]()
        loss.backward()
        return float(loss.detach())

    calls = {name: partial(timed, partial(descend, name)) for name in LOSSES}
    for name, runs in interleaved(calls, options.rounds, warm_up=1).items():
        rate = options.loss_tokens / statistics.median(run.seconds for run in runs)
        result[name] |= {"loss": runs[-1].result, "tokens_per_second": rate}
    whole, chunked = result["whole"], result["in chunks"]
    result["peak_share"] = chunked["peak"] / whole["peak"]
    result["peak_share_of_the_loss_alone"] = (chunked["peak"] - chunked["before"]) / (
        whole["peak"] - whole["before"]
    )
    result["speed_ratio"] = chunked["tokens_per_second"] / whole["tokens_per_second"]
    return result


def compare_hidden_states(options: argparse.Namespace) -> dict[str, Any]:
    """Compare epochs of Medusa-1 on kept hidden states with epochs that compute them again."""
    torch.set_num_threads(options.threads)
    model, tokenizer = demo.load(inflate=INFLATED_WIDTH)
    examples = _examples(tokenizer, options.examples)
    student = TrainingModel(model.base, new_heads(model.base, NUM_HEADS, 3, False, bias=True))
    student.base.requires_grad_(False)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        keeping = timed(partial(cached_states, student, examples, folder / "states"))
        sources: dict[str, tuple[Any, Any]] = {
            "kept": (collate_states, keeping.result),
            "computed again": (collate_rows(0), numbered_rows(examples)),
        }
        calls: dict[str, Callable[[], Timed[None]]] = {
            name: partial(_time_epoch, student, *source, folder) for name, source in sources.items()
        }
        seconds = seconds_of(interleaved(calls, options.epochs))
    tokens = sum(len(each.ids) for each in examples)
    rates = {source: tokens / median for source, median in medians(seconds).items()}
    return {
        "examples": len(examples),
        "tokens": tokens,
        "seconds_to_keep": keeping.seconds,
        "tokens_per_second": rates,
        "speed_ratio": rates["kept"] / rates["computed again"],
    }


def _examples(tokenizer: PreTrainedTokenizerBase, count: int) -> list[Example]:
    tasks = varied_tasks(EVEN, tokenizer, random.Random(4), FIRST_SEED)
    return [
        chat_example(tokenizer, task.prompt, task.answer) for task in itertools.islice(tasks, count)
    ]


def _time_epoch(student: TrainingModel, collate: Any, training: Any, folder: Path) -> Timed[None]:
    """Train for one epoch; the making of the trainer does not count."""
    recipe = Recipe(batch_size=16, micro_batch_size=16, evaluate_every=0, save_every=0)
    trainer = MedusaTrainer(
        student,
        recipe,
        "heads",
        1.0,
        Path(tempfile.mkdtemp(dir=folder)),
        StageData(collate, training, []),
        CandidateTree.chain(NUM_HEADS),
    )
    return timed(trainer.train_from_checkpoint)


def compare_vocabularies(options: argparse.Namespace) -> dict[str, Any]:
    """Compare training steps over the whole vocabulary with steps over a draft vocabulary."""
    torch.set_num_threads(options.threads)
    shape = {"hidden_size": options.hidden_size, "vocab_size": 49_152}
    result: dict[str, Any] = {
        **shape,
        "occurring": OCCURRING,
        "heads": NUM_HEADS,
        "tokens": options.tokens,
    }
    for name, layers, own in (("own lm_heads", 1, True), ("shared lm_head", 3, False)):
        calls = {
            kind: partial(timed, _training_step(shape, layers, own, kind == "data", options.tokens))
            for kind in ("full", "data")
        }
        seconds = seconds_of(interleaved(calls, options.rounds, warm_up=1))
        rates = {
            kind: [options.tokens / each for each in series] for kind, series in seconds.items()
        }
        middle = medians(rates)
        result[name] = {
            "layers": layers,
            "tokens_per_second": middle,
            "slowest_and_fastest": {kind: list(spread(each)) for kind, each in rates.items()},
            "speed_ratio": middle["data"] / middle["full"],
        }
    return result


def _training_step(
    shape: dict[str, int], layers: int, own_lm_head: bool, restricted: bool, tokens: int
) -> Callable[[], None]:
    """Return a function that runs one step of Medusa-1: loss, gradients and AdamW.

    Args:
        restricted: compute the loss over a draft vocabulary instead of the whole one.
        tokens: tokens of a step.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
    )
    base = LlamaForCausalLM(config).requires_grad_(False)
    heads = new_heads(base, NUM_HEADS, layers, own_lm_head, bias=True).requires_grad_(True)
    student = TrainingModel(base, heads, DECAY)
    occurring = torch.randperm(shape["vocab_size"])[:OCCURRING].sort().values
    hidden = torch.randn(tokens, shape["hidden_size"])
    targets = occurring[torch.randint(OCCURRING, (tokens, 1 + NUM_HEADS))]
    if restricted:
        student.restrict_vocabulary(occurring)
    optimizer = torch.optim.AdamW(student.heads.parameters(), lr=1e-4, weight_decay=0.0)

    def step() -> None:
        optimizer.zero_grad()
        student(hidden=hidden, targets=targets)["loss"].backward()
        optimizer.step()

    return step


def _loss_table(result: dict[str, Any]) -> Table:
    title = f"{result['tokens']} tokens, {NUM_HEADS} heads of {VOCABULARY}"
    table = Table("loss", "peak GB", "before it", "tokens / s", title=title)
    for name in LOSSES:
        figures = result[name]
        table.add_row(
            name,
            f"{figures['peak'] / 1e9:.2f}",
            f"{figures['before'] / 1e9:.2f}",
            f"{figures['tokens_per_second']:.0f}",
        )
    table.add_row("ratio", f"{result['peak_share']:.0%}", "", f"{result['speed_ratio']:.2f}")
    return table


def _hidden_states_table(result: dict[str, Any]) -> Table:
    title = f"{result['tokens']} tokens, 100 million parameters"
    table = Table("hidden states", "tokens / s", title=title)
    for source, rate in result["tokens_per_second"].items():
        table.add_row(source, f"{rate:.0f}")
    table.add_row("ratio", f"{result['speed_ratio']:.2f}")
    return table


def _vocabulary_table(result: dict[str, Any]) -> Table:
    title = f"{result['occurring']} of {result['vocab_size']} tokens, {NUM_HEADS} heads"
    table = Table("heads", "full, tokens / s", "data, tokens / s", "ratio", title=title)
    for name in ("own lm_heads", "shared lm_head"):
        rates = result[name]["tokens_per_second"]
        ratio = f"{result[name]['speed_ratio']:.2f}"
        table.add_row(name, f"{rates['full']:.0f}", f"{rates['data']:.0f}", ratio)
    return table


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "loss": compare_losses,
    "hidden_states": compare_hidden_states,
    "vocabulary": compare_vocabularies,
}
TABLES: dict[str, Callable[[dict[str, Any]], Table]] = {
    "loss": _loss_table,
    "hidden_states": _hidden_states_table,
    "vocabulary": _vocabulary_table,
}


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(
        __doc__, rounds=5, rounds_help="measured losses, or training steps, of each kind"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="comparisons (default: all)"
    )
    parser.add_argument(
        "--loss-tokens",
        type=int,
        default=2048,
        help="tokens of the comparison of losses (default: 2048)",
    )
    parser.add_argument(
        "--loss-hidden-size",
        type=int,
        default=512,
        help="hidden size in the comparison of losses (default: 512)",
    )
    parser.add_argument(
        "--hidden-size",
        type=int,
        default=576,
        help="hidden size in the vocabulary comparison (default: 576, that of SmolLM2-135M)",
    )
    parser.add_argument(
        "--tokens", type=int, default=512, help="tokens of a step in the vocabulary comparison"
    )
    parser.add_argument(
        "--examples", type=int, default=96, help="examples of the hidden-state comparison"
    )
    parser.add_argument(
        "--epochs", type=int, default=3, help="epochs of each kind in the hidden-state comparison"
    )
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    parts = {part: PARTS[part](options) for part in options.parts}
    tables = [TABLES[part](result) for part, result in parts.items()]
    publish(options, new_report(**parts), "training-cost", *tables)


if __name__ == "__main__":
    main()
