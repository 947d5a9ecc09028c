"""`python -m benchmarks.memory`: the peak memory of a model of a real size, loaded, generating and
calibrating.

A Llama of 1.2 billion random parameters in bfloat16 with a vocabulary of 128 thousand and five
heads with lm_heads of their own is written to a temporary folder (about 5 GB), and used as it is,
offloaded to disk in part, and quantised to 4 bits where bitsandbytes is installed; each in a
process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from medusa.calibration.report import Settings, calibrate
from medusa.evaluation.report import results_folder, write_json
from medusa.hardware.provenance import provenance
from medusa.loading import MedusaModel

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
SETTINGS = Settings(max_nodes=8, contexts=(100,), rounds=2, ranks=16)
"""A short calibration: what is measured is its memory."""


def write_model(folder: Path, size: str) -> dict[str, int]:
    """A base model and heads on it, random; returns their parameters and bytes on disk."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size],
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    base = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    base.save_pretrained(folder / "base")
    model = MedusaModel.from_base(base, num_heads=5)
    model.save_pretrained(folder / "heads", base="../base")
    return {
        "base_parameters": base.num_parameters(),
        "head_parameters": sum(each.numel() for each in model.heads.parameters()),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*.safetensors")),
    }


def loading(variant: str, folder: Path) -> dict[str, Any]:
    """What `from_pretrained` is given."""
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


def use(variant: str, folder: Path, tokens: int, threads: int) -> dict[str, dict[str, float]]:
    """Load, generate and calibrate; of each the seconds, and the process's peak memory in bytes up
    to then.
    """
    torch.set_num_threads(threads)
    found: dict[str, dict[str, float]] = {}
    started = time.perf_counter()

    def note(stage: str) -> None:
        nonlocal started
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found[stage] = {"seconds": time.perf_counter() - started, "peak_bytes": peak}
        started = time.perf_counter()

    note("libraries")
    model = MedusaModel.from_pretrained(
        folder / "heads", all_heads=True, **loading(variant, folder)
    )
    note("load")
    prompts = torch.randint(
        model.base.config.vocab_size, (6, 32), generator=torch.Generator().manual_seed(0)
    )
    model.generate(prompts[:1], max_new_tokens=tokens, do_sample=False, eos_token_id=None)
    note("generate")
    ids = prompts.tolist()
    calibrate(
        model,
        ids[2:],
        ids[:2],
        {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None},
        SETTINGS,
    )
    note("calibrate")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="1B")
    parser.add_argument("--variants", nargs="+", default=["as it is", "offloaded", "4 bits"])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=results_folder, default="benchmarks/results")
    options = parser.parse_args()
    console = Console(width=120)
    report: dict[str, Any] = {"provenance": provenance(), "variants": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report |= _alone(write_model, folder, options.size)
        for variant in options.variants:
            if variant == "4 bits" and importlib.util.find_spec("bitsandbytes") is None:
                console.print("4 bits left out: bitsandbytes is not installed")
                continue
            report["variants"][variant] = _alone(
                use, variant, folder, options.tokens, options.threads
            )
    size = (
        "{base_parameters:,} parameters and {head_parameters:,} in heads, {bytes:,} bytes on disk"
    ).format(**report)
    shown = Table("", "stage", "seconds", "peak GB so far")
    for variant, stages in report["variants"].items():
        for stage, each in stages.items():
            shown.add_row(
                variant, stage, f"{each['seconds']:.1f}", f"{each['peak_bytes'] / 1e9:.2f}"
            )
    console.print(size, shown)
    console.print(f"written to {write_json(options.output, report, 'memory')}")


def _alone(call: Any, *arguments: Any) -> Any:
    """The call's result, from a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


if __name__ == "__main__":
    main()
