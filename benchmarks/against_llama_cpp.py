"""`python -m benchmarks.against_llama_cpp`: one Llama of 110M parameters, here and in llama.cpp.

llama.cpp is widely used on CPUs, and so the reference for this library's CPU backend. The same
random weights are written as GGUF in several types, logits are compared first, then batches of n
tokens at one context length are timed by turns. Besides this library the script needs

    pip install llama-cpp-python gguf
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from medusa import CandidateTree, MedusaModel
from medusa.core.checks import Prepack
from medusa.hardware.timing import interleaved, timed

from .gguf_files import TYPES, write_gguf
from .harness import argument_parser, medians, new_report, parse_arguments, publish
from .models import random_llama, round_weights

CONFIG = LlamaConfig(
    vocab_size=16_384,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=2048,
)
SIZES = (1, 4, 8, 16, 32, 64)
CHECKED = 8
"""Number of tokens whose logits are compared."""
LARGEST_DIFFERENCE = 1e-3
"""Largest difference of logits between implementations that compute in float32."""

Milliseconds = dict[str, dict[str, float]]
"""Milliseconds by number of tokens and method."""


class LlamaCppModel:
    """A GGUF model in llama.cpp that decodes batches behind a prompt and then forgets them.

    Args:
        file: the GGUF file.
        prompt: token ids of the prompt.
        threads: CPU threads.
        precise: attention in float32; the default is llama.cpp's own, float16.
    """

    def __init__(self, file: Path, prompt: list[int], threads: int, precise: bool = False):
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = 512, 512, 512
        options.n_threads = options.n_threads_batch = threads
        if precise:
            options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
            options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.past = 0
        self.decode(prompt)
        self.past = len(prompt)

    def decode(self, tokens: list[int]) -> np.ndarray:
        """Return the logits [n, V] of tokens behind the prompt."""
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_seq_rm(memory, 0, self.past, -1)
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, self.past + index
            batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
        failed = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama_decode returned {failed}")
        logits = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, shape=(len(tokens), CONFIG.vocab_size))


class PromptedMedusa:
    """The same model in this library, behind the same prompt, with heads that share its lm_head.

    Args:
        base: the model.
        prompt: token ids of the prompt.
        compiled: compile the steps.
        half: pack weights in 16 bits.
    """

    def __init__(
        self, base: LlamaForCausalLM, prompt: list[int], compiled: bool, half: bool = False
    ):
        prepack: Prepack = "half" if half else None
        self.model = MedusaModel.from_base(
            base, num_heads=5, own_lm_head=False, compiled=compiled, prepack=prepack
        )
        self.trees = {size: CandidateTree.default(5, size) for size in SIZES}
        self.chain = CandidateTree.chain(CHECKED - 1)
        ids = torch.tensor([prompt])
        self.cache = self.model.new_cache(512)
        with torch.inference_mode():
            _, self.hidden = self.model.prefill(ids, torch.ones_like(ids), self.cache)

    @torch.inference_mode()
    def decode(self, tokens: list[int]) -> np.ndarray:
        """Return the logits [CHECKED, V] of tokens behind the prompt, one after the other."""
        logits, _ = self.model.verify(torch.tensor([tokens]), self.chain, self.cache)
        return logits[0].numpy()

    @torch.inference_mode()
    def verify(self, tokens: list[int]) -> None:
        """Verify a tree with as many nodes as there are tokens."""
        self.model.verify(torch.tensor([tokens]), self.trees[len(tokens)], self.cache)

    @torch.inference_mode()
    def draft(self, tokens: list[int]) -> None:
        """Run the heads for such a tree; plain decoding, which has one node, needs none."""
        if len(tokens) > 1:
            self.model.draft_logits(self.hidden, self.trees[len(tokens)].max_depth)


def milliseconds(call: Callable[[], Any], repeats: int) -> float:
    """Return the median time of some calls in a row, after one that wakes the threads up."""
    runs = [timed(call) for _ in range(repeats + 1)]
    return 1000 * statistics.median(run.seconds for run in runs[1:])


def logit_differences(
    models: dict[str, Any], reference: str, precise: set[str], tokens: list[int]
) -> dict[str, float]:
    """Return the largest difference of each model's logits from the reference model's.

    Args:
        models: models with a method `decode`.
        precise: names of the models that compute in float32.

    Raises:
        RuntimeError: the logits of a precise model differ by more than `LARGEST_DIFFERENCE`.
    """
    expected = models[reference].decode(tokens[:CHECKED])
    differences = {
        name: float(np.abs(model.decode(tokens[:CHECKED]) - expected).max())
        for name, model in models.items()
    }
    if max(differences[name] for name in precise) > LARGEST_DIFFERENCE:
        raise RuntimeError(f"not all compute the same: logits differ by {differences}")
    return differences


def time_rounds(
    methods: dict[str, Callable[[list[int]], Any]], tokens: list[int], rounds: int, repeats: int
) -> list[Milliseconds]:
    """Return milliseconds in each round, in which methods and numbers of tokens take turns."""
    calls = {
        (str(nodes), name): partial(milliseconds, partial(method, tokens[:nodes]), repeats)
        for nodes in SIZES
        for name, method in methods.items()
    }
    measured: list[Milliseconds] = [{} for _ in range(rounds)]
    for (size, name), series in interleaved(calls, rounds).items():
        for number, value in enumerate(series):
            measured[number].setdefault(size, {})[name] = value
    return measured


def summarise(rounds: list[Milliseconds], ours: list[str]) -> dict[str, Any]:
    """Return medians of milliseconds, and of ratios to llama.cpp in the same round.

    Args:
        rounds: milliseconds in each round.
        ours: names of this library's variants of the base model.
    """
    sizes = [str(nodes) for nodes in SIZES]
    methods = list(rounds[0][sizes[0]])
    ratios = {
        f"{name} / llama.cpp {kind}": medians(
            {
                size: [each[size][name] / each[size][f"llama.cpp {kind}"] for each in rounds]
                for size in sizes
            }
        )
        for kind in TYPES
        for name in ours
    }
    ms = {
        name: medians({size: [each[size][name] for each in rounds] for size in sizes})
        for name in methods
    }
    return {"ms": ms, "ratios": ratios, "rounds": rounds}


def measure_models(base: LlamaForCausalLM, options: argparse.Namespace) -> dict[str, Any]:
    """Return the differences of logits and the step times, here and in llama.cpp."""
    prompt = torch.randint(CONFIG.vocab_size, (options.context,)).tolist()
    tokens = torch.randint(CONFIG.vocab_size, (max(SIZES),)).tolist()
    ours = {
        name + (", 16 bits" if half else ""): PromptedMedusa(base, prompt, compiled, half)
        for half in (False, True)
        for name, compiled in {"base model": False, "base model, compiled": True}.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        theirs = {}
        for kind in TYPES:
            write_gguf(base, Path(folder) / kind, kind)
            theirs[kind] = LlamaCppModel(Path(folder) / kind, prompt, options.threads)
        precise = LlamaCppModel(Path(folder) / "f32", prompt, options.threads, precise=True)
        models: dict[str, Any] = {**ours, "precise": precise, **theirs}
        differences = logit_differences(models, "base model", {*ours, "precise"}, tokens)
        methods: dict[str, Callable[[list[int]], Any]] = {
            **{name: model.verify for name, model in ours.items()},
            "heads": ours["base model"].draft,
            **{f"llama.cpp {kind}": model.decode for kind, model in theirs.items()},
        }
        rounds = time_rounds(methods, tokens, options.rounds, options.repeats)
    return {"largest_difference": differences, **summarise(rounds, list(ours))}


def times_table(report: dict[str, Any], parameters: int) -> Table:
    """Return a table of milliseconds and ratios by number of tokens."""
    title = f"{parameters / 1e6:.0f}M parameters, {report['provenance']['device']}"
    table = Table("ms", *map(str, SIZES), title=title)
    for name, row in report["ms"].items():
        table.add_row(name, *(f"{value:.1f}" for value in row.values()))
    for name, row in report["ratios"].items():
        table.add_row(name, *(f"{value:.2f}x" for value in row.values()))
    return table


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__, rounds=7, rounds_help="turns of each method")
    parser.add_argument("--context", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--repeats", type=int, default=5, help="calls in a row each turn")
    return parse_arguments(parser)


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    base = random_llama(CONFIG)
    round_weights(base, torch.float16)
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    report = new_report(context=options.context, **measure_models(base, options))
    report["provenance"]["llama_cpp_python"] = llama_cpp.__version__
    publish(options, report, "llama-cpp", times_table(report, base.num_parameters()))


if __name__ == "__main__":
    main()
