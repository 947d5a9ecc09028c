"""`python -m benchmarks.code_completion`: heads for a model of natural text, trained from scratch.

A small Llama learns Python from the standard library's own source. Heads are then trained on it,
alone (Medusa-1) and together with the backbone (Medusa-2), all by `medusa.training`. Held-out files
are completed, greedily and sampled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from medusa import MedusaModel
from medusa.calibration.calibrate import calibrate
from medusa.calibration.settings import CalibrationSettings
from medusa.training import Example, Recipe, Source, evaluate_heads, train

from .harness import ROOT, argument_parser, new_report, parse_arguments, publish
from .models import random_llama

END = "<|end|>"
VOCABULARY = 4096
PIECE = 1600
"""Usual number of characters of a piece of a file; models train on pieces and complete them."""
TEST_SHARE = 1 / 30
"""Share of the files that are held out."""
MAX_NODES = 16
"""Maximum tree size that calibration searches."""
SHARED: dict[str, Any] = {
    "num_layers": 1,
    "own_lm_head": False,
    "batch_size": 16,
    "micro_batch_size": 16,
    "max_length": 512,
    "bf16": True,
    "evaluate_every": 0,
    "save_every": 200,
    "log_every": 50,
    "evaluation_share": 0.005,
}
WHOLE_BACKBONE: dict[str, Any] = {
    **SHARED,
    "lora_rank": 0,
    "optimizer": "muon",
    "packing": True,
}
BACKBONE = Recipe(method="backbone", lr=5e-3, warmup_steps=100, epochs=2, **WHOLE_BACKBONE)
MEDUSA_1 = Recipe(
    **{**SHARED, "method": "medusa-1", "num_layers": 3, "cache_hidden_states": True, "epochs": 2}
)
MEDUSA_2 = Recipe(method="medusa-2", epochs=1, **WHOLE_BACKBONE)
BACKBONE_LONGER = Recipe(**{**MEDUSA_2.to_json(), "method": "backbone"})
POLICIES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "temperature 0.7": {"do_sample": True, "temperature": 0.7},
}


def pieces(text: str) -> Iterator[str]:
    """Yield parts of about `PIECE` characters, cut before a function or class if possible."""
    part: list[str] = []
    length = 0
    for line in text.splitlines(keepends=True):
        begins = line.startswith(("def ", "class ", "async def ", "@", "    def ", "    @"))
        if part and (length > PIECE or (begins and length > PIECE / 2)):
            yield "".join(part)
            part, length = [], 0
        part.append(line)
        length += len(line)
    if part:
        yield "".join(part)


def read_library() -> dict[str, list[str]]:
    """Return the pieces of the standard library's files to train on ("train") and to test on.

    A hash of its name decides where a file belongs, so that the split is the same everywhere.
    """
    split: dict[str, list[str]] = {"train": [], "test": []}
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        if "site-packages" in file.parts:
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # the library's own tests of other encodings
            continue
        number = hashlib.sha256(str(file.relative_to(library)).encode()).digest()[0]
        split["test" if number < 256 * TEST_SHARE else "train"] += pieces(text)
    for texts in split.values():
        random.Random(0).shuffle(texts)
    return split


def write_untrained(texts: list[str], folder: Path) -> Path:
    """Write an untrained model, and a tokenizer trained on every fourth text, to a folder."""
    if (folder / "config.json").is_file():
        return folder
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet
    )
    bpe.train_from_iterator(texts[::4], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    random_llama(config).save_pretrained(folder)
    return folder


def write_data(texts: list[str], options: argparse.Namespace) -> dict[str, str]:
    """Write the files that the models train on; return their names by training run."""
    sizes = {"all": options.pieces, "heads": options.head_pieces, "both": options.both_pieces}
    written = {}
    for name, size in sizes.items():
        file = options.work / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:size]))
        written[name] = str(file)
    return written


def train_models(untrained: Path, data: dict[str, str], work: Path) -> dict[str, Path]:
    """Train the backbone and the heads; return the folders of the models that are compared."""
    source = Source(str(untrained), data["all"])
    backbone = train(BACKBONE, source, work / "backbone") / "model"
    heads = train(MEDUSA_1, Source(str(backbone), data["heads"]), work / "medusa-1")
    return {
        "Medusa-1": heads,
        "Medusa-2": train(MEDUSA_2, Source(str(heads), data["both"]), work / "medusa-2"),
        "backbone alone, as long": train(
            BACKBONE_LONGER, Source(str(backbone), data["both"]), work / "longer"
        ),
    }


def complete_pieces(
    model: MedusaModel, ids: list[list[int]], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Complete the beginnings of pieces with the tree that is fastest here.

    Returns:
        For each of `POLICIES` the tree's size, acceleration rate, overhead and speedup.
    """
    prompts = [each[: min(96, len(each) // 2)] for each in ids if len(each) > 64]
    recorded, others = prompts[: options.recorded], prompts[options.recorded :][: options.completed]
    figures = {}
    for name, policy in POLICIES.items():
        arguments = {"max_new_tokens": 128, **policy}
        settings = CalibrationSettings(max_nodes=MAX_NODES)
        report = calibrate(model, recorded, others, arguments, settings)
        figures[name] = {
            "nodes": len(report.tree),
            "acceleration_rate": report.measured.acceleration_rate,
            "overhead": report.measured.overhead,
            "speedup": report.measured.speedup,
        }
    return figures


def judge_model(
    folder: Path, ids: list[list[int]], has_heads: bool, options: argparse.Namespace
) -> dict[str, Any]:
    """Return perplexity, the heads' accuracy and the figures of completion on held-out pieces."""
    model = MedusaModel.from_pretrained(folder, dtype=torch.float32, all_heads=True)
    metrics = evaluate_heads(model, [Example(each, each) for each in ids[: options.judged]])
    return {
        "perplexity": metrics.perplexity,
        "accuracy": metrics.accuracy if has_heads else [],
        "policies": complete_pieces(model, ids, options) if has_heads else {},
    }


def methods_table(methods: dict[str, Any]) -> Table:
    """Return a table with a row for each method and policy."""
    headings = ("nodes", "tokens / step", "overhead", "speedup")
    table = Table("", "perplexity", "heads right", "policy", *headings)
    for name, judged in methods.items():
        top = ", ".join(f"{row[0]:.0%}" for row in judged["accuracy"])
        for policy, rates in (judged["policies"] or {"": {}}).items():
            figures = (
                f"{each:.2f}" if isinstance(each, float) else str(each) for each in rates.values()
            )
            table.add_row(name, f"{judged['perplexity']:.2f}", top, policy, *figures)
    return table


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--pieces", type=int, help="pieces of the library to train the backbone on (default: all)"
    )
    parser.add_argument(
        "--head-pieces", type=int, default=12000, help="number of those for the heads alone"
    )
    parser.add_argument(
        "--both-pieces",
        type=int,
        default=4000,
        help="number of those for heads and backbone together",
    )
    parser.add_argument(
        "--judged", type=int, default=200, help="held-out pieces for perplexity and accuracy"
    )
    parser.add_argument(
        "--recorded", type=int, default=60, help="held-out pieces on which trees are chosen"
    )
    parser.add_argument("--completed", type=int, default=40, help="held-out pieces to complete")
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "build" / "code",
        help="folder for data and runs, where they are resumed (default: build/code)",
    )
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    options.work.mkdir(parents=True, exist_ok=True)
    texts = read_library()
    data = write_data(texts["train"], options)
    untrained = write_untrained(texts["train"], options.work / "untrained")
    folders = train_models(untrained, data, options.work)
    tokenizer = AutoTokenizer.from_pretrained(untrained)
    ids = [tokenizer(text)["input_ids"][:512] for text in texts["test"]]
    methods = {
        name: judge_model(folder, ids, name.startswith("Medusa"), options)
        for name, folder in folders.items()
    }
    sizes = {"all": options.pieces, "heads": options.head_pieces, "both": options.both_pieces}
    used = {name: len(texts["train"][:size]) for name, size in sizes.items()}
    report = new_report(pieces=used, methods=methods)
    publish(options, report, "code-completion", methods_table(methods))


if __name__ == "__main__":
    main()
