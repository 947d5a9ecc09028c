"""`python -m medusa.bench.training_cost`: what training saves by computing less at a time, and less often.

The loss in chunks against the loss of whole logits, memory and speed, for heads with lm_heads of their own and a
vocabulary of 32 thousand; and heads that train on kept hidden states against heads that have the backbone run again
every epoch, on the embedded model inflated to 100 million parameters.
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

from .. import demo
from ..demo.recipe import EVEN
from ..demo.stream import varied_tasks
from ..demo.train import example
from ..heads import MedusaConfig, MedusaHeads
from ..model import new_heads
from ..provenance import provenance
from ..training.data import collate_rows, numbered_rows
from ..training.hidden import collate_states, keep
from ..training.losses import medusa1_loss
from ..training.recipe import Recipe
from ..training.student import Student
from ..training.trainer import StudentTrainer
from ..tree import CandidateTree
from .__main__ import INFLATED_WIDTH
from .report import results_folder, write_json

HIDDEN, VOCABULARY, HEADS, TOKENS = 512, 32_000, 5, 2048
DECAY = 0.8
KINDS = ("whole", "in chunks")


def losses(threads: int) -> tuple[MedusaHeads, dict[str, Callable[[], Tensor]]]:
    """Heads, and eq. 1 of the same states in both ways."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=1, num_attention_heads=8
    )
    base = LlamaForCausalLM(config).requires_grad_(False)
    heads = MedusaHeads.from_lm_head(base.lm_head, MedusaConfig(HEADS, 1, HIDDEN, VOCABULARY))
    student = Student(base, heads, DECAY)
    hidden, targets = torch.randn(TOKENS, HIDDEN), torch.randint(VOCABULARY, (TOKENS, 1 + HEADS))

    def whole() -> Tensor:
        return medusa1_loss(heads(hidden), targets[:, 1:], DECAY)

    def in_chunks() -> Tensor:
        loss: Tensor = student(hidden=hidden, targets=targets)["loss"]
        return loss

    return heads, {"whole": whole, "in chunks": in_chunks}


def peak(kind: str, threads: int) -> dict[str, float]:
    """Bytes of memory that a process has at most, before and while it computes loss and gradients."""
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
        found[kind] |= {"loss": values[kind], "tokens_per_second": TOKENS / statistics.median(seconds[kind][1:])}
    whole, parts = found["whole"], found["in chunks"]
    found["peak_share"] = parts["peak"] / whole["peak"]
    found["peak_share_of_the_loss_alone"] = (parts["peak"] - parts["before"]) / (whole["peak"] - whole["before"])
    found["speed_ratio"] = parts["tokens_per_second"] / whole["tokens_per_second"]
    return found


def states(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of an epoch of Medusa-1, with the backbone's states kept and computed again, by turns."""
    torch.set_num_threads(options.threads)
    model, tokenizer = demo.load(inflate=INFLATED_WIDTH)
    tasks = itertools.islice(varied_tasks(EVEN, tokenizer, random.Random(4), 60_000_000), options.examples)
    examples = [example(tokenizer, task.prompt, task.answer) for task in tasks]
    recipe = Recipe(batch_size=16, micro_batch_size=16, evaluate_every=0, save_every=0)
    seconds: dict[str, list[float]] = {"kept": [], "computed again": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        student = Student(model.base, new_heads(model.base, HEADS, 3, False, bias=True))
        student.base.requires_grad_(False)
        begun = time.perf_counter()
        kept = keep(student, examples, folder / "states")
        keeping = time.perf_counter() - begun
        given: dict[str, tuple[Any, Any]] = {
            "kept": (collate_states, kept),
            "computed again": (collate_rows(0), numbered_rows(examples)),
        }
        for turn, way in itertools.product(range(options.epochs), given):
            collate, training = given[way]
            place = folder / f"{way}-{turn}"
            trainer = StudentTrainer(
                student, recipe, "heads", 1.0, place, collate, training, [], CandidateTree.chain(HEADS)
            )
            begun = time.perf_counter()
            trainer.go()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of loss and gradients, in each way")
    parser.add_argument("--examples", type=int, default=96, help="that heads train on")
    parser.add_argument("--epochs", type=int, default=3, help="of them, in each way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=results_folder, default="benchmarks/results")
    options = parser.parse_args()
    console = Console(width=120)
    report: dict[str, Any] = {"provenance": provenance() | {"threads": options.threads}}
    report |= {"loss": chunks(options), "hidden_states": states(options)}
    shown = Table("loss", "peak GB", "before it", "tokens / s", title=f"{TOKENS} tokens, {HEADS} heads of {VOCABULARY}")
    for kind in KINDS:
        each = report["loss"][kind]
        shown.add_row(
            kind, f"{each['peak'] / 1e9:.2f}", f"{each['before'] / 1e9:.2f}", f"{each['tokens_per_second']:.0f}"
        )
    shown.add_row("ratio", f"{report['loss']['peak_share']:.0%}", "", f"{report['loss']['speed_ratio']:.2f}")
    told = report["hidden_states"]
    again = Table("hidden states", "tokens / s", title=f"{told['tokens']} tokens, 100 million parameters")
    for way, rate in told["tokens_per_second"].items():
        again.add_row(way, f"{rate:.0f}")
    again.add_row("ratio", f"{told['speed_ratio']:.2f}")
    console.print(shown, again)
    console.print(f"written to {write_json(options.output, report, 'training-cost')}")


if __name__ == "__main__":
    main()
