"""`python -m benchmarks.training_cost`: what training saves by computing less at a time, and less
often.

Three comparisons. The loss in chunks and the loss of whole logits, memory and speed, for heads with
own lm_heads and a vocabulary of 32 thousand. Heads that train on kept hidden states and heads that
have the backbone run again every epoch, on the embedded model inflated to 100 million parameters.
The heads' loss over the tokens that occur in the data and the loss over the whole vocabulary, with
the shape of SmolLM2-135M and random weights.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from medusa import demo
from medusa.core.heads import MedusaConfig, MedusaHeads
from medusa.core.model import new_heads
from medusa.core.tree import CandidateTree
from medusa.data.examples import collate_rows, numbered_rows
from medusa.evaluation.report import results_folder, write_json
from medusa.hardware.provenance import provenance
from medusa.training.hidden import cached_states, collate_states
from medusa.training.losses import medusa1_loss
from medusa.training.recipe import Recipe
from medusa.training.trainer import MedusaTrainer, StageData
from medusa.training.training_model import TrainingModel
from tools.demo_model.recipe import EVEN
from tools.demo_model.stream import varied_tasks
from tools.demo_model.train import example

from .speed import INFLATED_WIDTH

HIDDEN, VOCABULARY, HEADS, TOKENS = 512, 32_000, 5, 2048
DECAY = 0.8
OCCURRING = 4_931
"""Tokens of a vocabulary of 49,152 that the answers of a small model used."""
KINDS = ("whole", "in chunks")


def losses(threads: int) -> tuple[MedusaHeads, dict[str, Callable[[], Tensor]]]:
    """Heads, and eq. 1 of the same states in both ways."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=8,
    )
    base = LlamaForCausalLM(config).requires_grad_(False)
    heads = MedusaHeads.from_lm_head(base.lm_head, MedusaConfig(HEADS, 1, HIDDEN, VOCABULARY))
    student = TrainingModel(base, heads, DECAY)
    hidden, targets = torch.randn(TOKENS, HIDDEN), torch.randint(VOCABULARY, (TOKENS, 1 + HEADS))

    def whole() -> Tensor:
        return medusa1_loss(heads(hidden), targets[:, 1:], DECAY)

    def in_chunks() -> Tensor:
        loss: Tensor = student(hidden=hidden, targets=targets)["loss"]
        return loss

    return heads, {"whole": whole, "in chunks": in_chunks}


def peak(kind: str, threads: int) -> dict[str, float]:
    """Bytes of memory that a process has at most, before and while it computes loss and
    gradients.
    """
    heads, computes = losses(threads)
    for parameter in heads.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = _peak()
    computes[kind]().backward()
    return {"before": before, "peak": _peak()}


def _peak() -> float:
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def chunks(options: argparse.Namespace) -> dict[str, Any]:
    """Memory, each in a process of its own, and speed, by turns in this one."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found[kind] = pool.submit(peak, kind, options.threads).result()
    heads, computes = losses(options.threads)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    values, gradients = {}, {}
    for kind in itertools.chain.from_iterable([KINDS] * (options.rounds + 1)):
        heads.zero_grad()
        begun = time.perf_counter()
        loss = computes[kind]()
        loss.backward()
        seconds[kind].append(time.perf_counter() - begun)
        values[kind], gradients[kind] = float(loss.detach()), next(heads.parameters()).grad
    for kind in KINDS:
        found[kind] |= {
            "loss": values[kind],
            "tokens_per_second": TOKENS / statistics.median(seconds[kind][1:]),
        }
    whole, parts = found["whole"], found["in chunks"]
    found["peak_share"] = parts["peak"] / whole["peak"]
    found["peak_share_of_the_loss_alone"] = (parts["peak"] - parts["before"]) / (
        whole["peak"] - whole["before"]
    )
    found["speed_ratio"] = parts["tokens_per_second"] / whole["tokens_per_second"]
    return found


def states(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of an epoch of Medusa-1, with the backbone's states kept and computed again,
    by turns.
    """
    torch.set_num_threads(options.threads)
    model, tokenizer = demo.load(inflate=INFLATED_WIDTH)
    tasks = itertools.islice(
        varied_tasks(EVEN, tokenizer, random.Random(4), 60_000_000), options.examples
    )
    examples = [example(tokenizer, task.prompt, task.answer) for task in tasks]
    recipe = Recipe(batch_size=16, micro_batch_size=16, evaluate_every=0, save_every=0)
    seconds: dict[str, list[float]] = {"kept": [], "computed again": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        student = TrainingModel(model.base, new_heads(model.base, HEADS, 3, False, bias=True))
        student.base.requires_grad_(False)
        begun = time.perf_counter()
        kept = cached_states(student, examples, folder / "states")
        keeping = time.perf_counter() - begun
        given: dict[str, tuple[Any, Any]] = {
            "kept": (collate_states, kept),
            "computed again": (collate_rows(0), numbered_rows(examples)),
        }
        for turn, way in itertools.product(range(options.epochs), given):
            collate, training = given[way]
            place = folder / f"{way}-{turn}"
            trainer = MedusaTrainer(
                student,
                recipe,
                "heads",
                1.0,
                place,
                StageData(collate, training, []),
                CandidateTree.chain(HEADS),
            )
            begun = time.perf_counter()
            trainer.train_from_checkpoint()
            seconds[way].append(time.perf_counter() - begun)
    tokens = sum(len(each.ids) for each in examples)
    rates = {way: tokens / statistics.median(each) for way, each in seconds.items()}
    return {
        "examples": len(examples),
        "tokens": tokens,
        "seconds_to_keep": keeping,
        "tokens_per_second": rates,
        "speed_ratio": rates["kept"] / rates["computed again"],
    }


def vocabularies(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of training steps on kept hidden states, over the whole vocabulary and over
    what occurs of it.
    """
    torch.set_num_threads(options.threads)
    shape = {"hidden_size": 576, "vocab_size": 49_152}
    found: dict[str, Any] = {
        **shape,
        "occurring": OCCURRING,
        "heads": HEADS,
        "tokens": options.tokens,
    }
    for name, layers, own in (("own lm_heads", 1, True), ("shared lm_head", 3, False)):
        steps = {
            kind: _step(shape, layers, own, kind == "data", options) for kind in ("full", "data")
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in steps}
        for kind in itertools.chain.from_iterable([tuple(steps)] * (options.rounds + 1)):
            begun = time.perf_counter()
            steps[kind]()
            seconds[kind].append(time.perf_counter() - begun)
        rates = {
            kind: [options.tokens / each for each in times[1:]] for kind, times in seconds.items()
        }
        medians = {kind: statistics.median(each) for kind, each in rates.items()}
        found[name] = {
            "layers": layers,
            "tokens_per_second": medians,
            "slowest_and_fastest": {kind: [min(each), max(each)] for kind, each in rates.items()},
            "speed_ratio": medians["data"] / medians["full"],
        }
    return found


def _step(
    shape: dict[str, int], layers: int, own: bool, restricted: bool, options: argparse.Namespace
) -> Callable[[], None]:
    """A step of Medusa-1: loss, gradients and AdamW; over the tokens that occur, or over all."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        intermediate_size=576,
        num_hidden_layers=1,
        num_attention_heads=9,
        tie_word_embeddings=True,
    )
    base = LlamaForCausalLM(config).requires_grad_(False)
    student = TrainingModel(
        base, new_heads(base, HEADS, layers, own, bias=True).requires_grad_(True), DECAY
    )
    tokens = torch.randperm(shape["vocab_size"])[:OCCURRING].sort().values
    hidden = torch.randn(options.tokens, shape["hidden_size"])
    targets = tokens[torch.randint(OCCURRING, (options.tokens, 1 + HEADS))]
    if restricted:
        student.restrict_vocabulary(tokens)
    optimizer = torch.optim.AdamW(student.heads.parameters(), lr=1e-4, weight_decay=0.0)

    def step() -> None:
        optimizer.zero_grad()
        student(hidden=hidden, targets=targets)["loss"].backward()
        optimizer.step()

    return step


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "loss": chunks,
    "hidden_states": states,
    "vocabulary": vocabularies,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="of loss and gradients, or of steps, in each way"
    )
    parser.add_argument("--tokens", type=int, default=512, help="of a step, with each vocabulary")
    parser.add_argument("--examples", type=int, default=96, help="that heads train on")
    parser.add_argument("--epochs", type=int, default=3, help="of them, in each way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=results_folder, default="benchmarks/results")
    options = parser.parse_args()
    console = Console(width=120)
    report: dict[str, Any] = {"provenance": provenance() | {"threads": options.threads}}
    for part in options.parts:
        report[part] = PARTS[part](options)
        console.print(TABLES[part](report[part]))
    console.print(f"written to {write_json(options.output, report, 'training-cost')}")


def _loss_table(found: dict[str, Any]) -> Table:
    shown = Table(
        "loss",
        "peak GB",
        "before it",
        "tokens / s",
        title=f"{TOKENS} tokens, {HEADS} heads of {VOCABULARY}",
    )
    for kind in KINDS:
        each = found[kind]
        shown.add_row(
            kind,
            f"{each['peak'] / 1e9:.2f}",
            f"{each['before'] / 1e9:.2f}",
            f"{each['tokens_per_second']:.0f}",
        )
    shown.add_row("ratio", f"{found['peak_share']:.0%}", "", f"{found['speed_ratio']:.2f}")
    return shown


def _states_table(found: dict[str, Any]) -> Table:
    shown = Table(
        "hidden states", "tokens / s", title=f"{found['tokens']} tokens, 100 million parameters"
    )
    for way, rate in found["tokens_per_second"].items():
        shown.add_row(way, f"{rate:.0f}")
    shown.add_row("ratio", f"{found['speed_ratio']:.2f}")
    return shown


def _vocabulary_table(found: dict[str, Any]) -> Table:
    title = f"{found['occurring']} of {found['vocab_size']} tokens occur, {HEADS} heads"
    shown = Table("heads", "full, tokens / s", "data, tokens / s", "ratio", title=title)
    for name in ("own lm_heads", "shared lm_head"):
        each = found[name]
        rates = each["tokens_per_second"]
        shown.add_row(
            name, f"{rates['full']:.0f}", f"{rates['data']:.0f}", f"{each['speed_ratio']:.2f}"
        )
    return shown


TABLES: dict[str, Callable[[dict[str, Any]], Table]] = {
    "loss": _loss_table,
    "hidden_states": _states_table,
    "vocabulary": _vocabulary_table,
}


if __name__ == "__main__":
    main()
