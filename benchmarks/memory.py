"""`python -m benchmarks.memory`: peak memory of a model of a real size: load, generate, calibrate.

A Llama of 1.2 billion random parameters in bfloat16, with a vocabulary of 128 thousand and five
heads with lm_heads of their own, is written to a temporary folder (about 5 GB). It is used as it
is, offloaded to disk in part, and quantised to 4 bits if bitsandbytes is installed, each in a
process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import BitsAndBytesConfig, LlamaConfig

from medusa.calibration.calibrate import calibrate
from medusa.calibration.settings import CalibrationSettings
from medusa.loading import MedusaModel

from .harness import (
    argument_parser,
    in_new_process,
    new_report,
    parse_arguments,
    peak_bytes,
    publish,
)
from .models import random_llama

SIZES: dict[str, dict[str, int]] = {
    "1B": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
    },
}
SETTINGS = CalibrationSettings(max_nodes=8, contexts=(100,), rounds=2, ranks=16)
"""Settings of a short calibration; its memory is that of a long one."""


def write_model(folder: Path, size: str) -> dict[str, int]:
    """Write a random base model and heads; return their parameters and bytes on disk."""
    config = LlamaConfig(
        **SIZES[size],
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    base = random_llama(config, torch.bfloat16)
    base.save_pretrained(folder / "base")
    model = MedusaModel.from_base(base, num_heads=5)
    model.save_pretrained(folder / "heads", base="../base")
    return {
        "base_parameters": base.num_parameters(),
        "head_parameters": sum(each.numel() for each in model.heads.parameters()),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*.safetensors")),
    }


def loading_arguments(variant: str, folder: Path) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a variant."""
    if variant == "offloaded":
        half = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors")) // 2
        offload = str(folder / "offload")
        return {
            "dtype": "auto",
            "device_map": "auto",
            "max_memory": {"cpu": half},
            "offload_folder": offload,
        }
    if variant == "4 bits":
        return {"dtype": "auto", "quantization_config": BitsAndBytesConfig(load_in_4bit=True)}
    return {"dtype": "auto"}


class StageMeter:
    """Seconds and peak memory of the stages of this process.

    Attributes:
        stages: for each finished stage its seconds, and the process's peak memory in bytes up to
            its end.
    """

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self._started = time.perf_counter()

    def finish(self, stage: str) -> None:
        """Record a stage, which ends now, and start the next."""
        seconds = time.perf_counter() - self._started
        self.stages[stage] = {"seconds": seconds, "peak_bytes": peak_bytes()}
        self._started = time.perf_counter()


def use_model(variant: str, folder: Path, tokens: int, threads: int) -> dict[str, dict[str, float]]:
    """Load the model, generate and calibrate; return the stages of a `StageMeter`.

    Args:
        tokens: tokens of an answer.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    meter = StageMeter()
    meter.finish("libraries")
    model = MedusaModel.from_pretrained(
        folder / "heads", all_heads=True, **loading_arguments(variant, folder)
    )
    meter.finish("load")
    prompts = torch.randint(
        model.base.config.vocab_size, (6, 32), generator=torch.Generator().manual_seed(0)
    )
    arguments: dict[str, Any] = {
        "max_new_tokens": tokens,
        "do_sample": False,
        "eos_token_id": None,
    }
    model.generate(prompts[:1], **arguments)
    meter.finish("generate")
    ids = prompts.tolist()
    calibrate(model, ids[2:], ids[:2], arguments, SETTINGS)
    meter.finish("calibrate")
    return meter.stages


def memory_table(variants: dict[str, Any]) -> Table:
    """Return a table with a row for each variant and stage."""
    table = Table("", "stage", "seconds", "peak GB so far")
    for variant, stages in variants.items():
        for stage, figures in stages.items():
            peak = f"{figures['peak_bytes'] / 1e9:.2f}"
            table.add_row(variant, stage, f"{figures['seconds']:.1f}", peak)
    return table


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="1B", help="shape of the model")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["as it is", "offloaded", "4 bits"],
        help="how it is loaded (default: all)",
    )
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer")
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    report = new_report(variants={})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report |= in_new_process(write_model, folder, options.size)
        for variant in options.variants:
            if variant == "4 bits" and importlib.util.find_spec("bitsandbytes") is None:
                print("4 bits left out: bitsandbytes is not installed")
                continue
            report["variants"][variant] = in_new_process(
                use_model, variant, folder, options.tokens, options.threads
            )
    size = (
        "{base_parameters:,} parameters and {head_parameters:,} in heads, {bytes:,} bytes on disk"
    ).format(**report)
    publish(options, report, "memory", size, memory_table(report["variants"]))


if __name__ == "__main__":
    main()
