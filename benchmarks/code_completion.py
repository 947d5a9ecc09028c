"""`python benchmarks/code_completion.py`: heads for a model of natural text, made from nothing.

A small Llama learns Python from the standard library's own source, then heads learn it, alone
(Medusa-1) and along with the backbone (Medusa-2), all by `medusa.training`. Held-out files are
completed, greedily and sampled.
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
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medusa import MedusaModel
from medusa.calibration.report import Settings, calibrate
from medusa.evaluation.report import write_json
from medusa.hardware.provenance import provenance
from medusa.training import Example, Recipe, Source, evaluate_heads, train

END = "<|end|>"
VOCABULARY = 4096
PIECE = 1600
"""Characters of a piece of a file, about; pieces are what is learnt and completed."""
MAX_NODES = 16
"""The largest tree that calibration thinks of."""
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=6,
    num_attention_heads=4,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)
COMMON: dict[str, Any] = {
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
WHOLE: dict[str, Any] = {**COMMON, "lora_rank": 0, "optimizer": "muon", "packing": True}
BACKBONE = Recipe(method="backbone", lr=5e-3, warmup_steps=100, epochs=2, **WHOLE)
HEADS = Recipe(
    **{**COMMON, "method": "medusa-1", "num_layers": 3, "cache_hidden_states": True, "epochs": 2}
)
BOTH = Recipe(method="medusa-2", epochs=1, **WHOLE)
POLICIES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "temperature 0.7": {"do_sample": True, "temperature": 0.7},
}


def pieces(text: str) -> Iterator[str]:
    """A file in parts that begin where a function, a class or a paragraph does."""
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


def corpus() -> dict[str, list[str]]:
    """Pieces of all files to learn from, and of one in thirty to judge by; a file's name says which
    it is.
    """
    found: dict[str, list[str]] = {"train": [], "test": []}
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        if "site-packages" in file.parts:
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # tests of other encodings
            continue
        number = hashlib.sha256(str(file.relative_to(library)).encode()).digest()[0]
        found["test" if number < 256 / 30 else "train"] += pieces(text)
    random.Random(0).shuffle(found["train"])
    random.Random(0).shuffle(found["test"])
    return found


def make_base(texts: dict[str, list[str]], folder: Path) -> Path:
    """An untrained model and its tokenizer."""
    if not (folder / "config.json").is_file():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet
        )
        tokenizer.train_from_iterator(texts["train"][::4], trainer)
        whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
        whole.save_pretrained(folder)
        torch.manual_seed(0)
        CONFIG.eos_token_id = CONFIG.pad_token_id = whole.eos_token_id
        LlamaForCausalLM(CONFIG).save_pretrained(folder)
    return folder


def judge(model: MedusaModel, ids: list[list[int]]) -> dict[str, Any]:
    """Perplexity and the heads' accuracy on held-out pieces."""
    metrics = evaluate_heads(model, [Example(each, each) for each in ids])
    return {"perplexity": metrics.perplexity, "accuracy": metrics.accuracy}


def complete(
    model: MedusaModel, ids: list[list[int]], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """For each policy, rates and speed of completing the pieces' beginnings with the tree that is
    fastest here.
    """
    prompts = [each[: min(96, len(each) // 2)] for each in ids if len(each) > 64]
    recorded, others = prompts[: options.recorded], prompts[options.recorded :][: options.completed]
    found = {}
    for name, policy in POLICIES.items():
        report = calibrate(
            model,
            recorded,
            others,
            {"max_new_tokens": 128, **policy},
            Settings(max_nodes=MAX_NODES),
        )
        told = report.measured
        found[name] = {
            "nodes": len(report.tree),
            "acceleration_rate": told.acceleration_rate,
            "overhead": told.overhead,
            "speedup": told.speedup,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pieces", type=int, help="of the library to learn from (default: all)")
    parser.add_argument(
        "--head-pieces", type=int, default=12000, help="of them, for the heads alone"
    )
    parser.add_argument(
        "--both-pieces", type=int, default=4000, help="of them, for heads and backbone together"
    )
    parser.add_argument(
        "--judged", type=int, default=200, help="held-out pieces for perplexity and accuracy"
    )
    parser.add_argument(
        "--recorded", type=int, default=60, help="held-out pieces on which trees are chosen"
    )
    parser.add_argument("--completed", type=int, default=40, help="held-out pieces to complete")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/code"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=120)
    options.work.mkdir(parents=True, exist_ok=True)
    texts = corpus()
    sizes = {"all": options.pieces, "heads": options.head_pieces, "both": options.both_pieces}
    files = {name: texts["train"][:size] for name, size in sizes.items()}
    for name, part in files.items():
        (options.work / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in part)
        )
    data = {name: str(options.work / f"{name}.jsonl") for name in files}
    untrained = make_base(texts, options.work / "untrained")
    backbone = (
        train(BACKBONE, Source(str(untrained), data["all"]), options.work / "backbone") / "model"
    )
    alone = train(HEADS, Source(str(backbone), data["heads"]), options.work / "medusa-1")
    both = train(BOTH, Source(str(alone), data["both"]), options.work / "medusa-2")
    longer = train(
        Recipe(**{**BOTH.to_json(), "method": "backbone"}),
        Source(str(backbone), data["both"]),
        options.work / "longer",
    )
    tokenizer = AutoTokenizer.from_pretrained(untrained)
    ids = [tokenizer(text)["input_ids"][:512] for text in texts["test"]]
    report: dict[str, Any] = {
        "provenance": provenance(),
        "pieces": {name: len(part) for name, part in files.items()},
        "methods": {},
    }
    shown = Table(
        "", "perplexity", "heads right", "policy", "nodes", "tokens / step", "overhead", "speedup"
    )
    for name, folder in {
        "Medusa-1": alone,
        "Medusa-2": both,
        "backbone alone, as long": longer,
    }.items():
        model = MedusaModel.from_pretrained(folder, dtype=torch.float32, all_heads=True)
        told = judge(model, ids[: options.judged])
        if folder is longer:  # whose heads nobody trained
            told |= {"accuracy": [], "policies": {}}
        else:
            told["policies"] = complete(model, ids, options)
        report["methods"][name] = told
        top = ", ".join(f"{row[0]:.0%}" for row in told["accuracy"])
        for policy, rates in (told["policies"] or {"": {}}).items():
            figures = (
                f"{each:.2f}" if isinstance(each, float) else str(each) for each in rates.values()
            )
            shown.add_row(name, f"{told['perplexity']:.2f}", top, policy, *figures)
    console.print(shown)
    console.print(f"written to {write_json(options.output, report, 'code-completion')}")


if __name__ == "__main__":
    main()
