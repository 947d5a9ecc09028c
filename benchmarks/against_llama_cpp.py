"""`python benchmarks/against_llama_cpp.py`: one Llama of 110M random parameters, here and in
llama.cpp, in one run.

The anchor of the CPU backend: what somebody would run instead. The same weights are written as GGUF
    in several types,
logits are compared first, then batches of n tokens at one context are timed by turns. Besides this
library it needs

    pip install llama-cpp-python gguf
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from medusa import CandidateTree, MedusaModel
from medusa.core.checks import Prepack
from medusa.evaluation.report import write_json
from medusa.hardware.provenance import provenance

CONFIG = LlamaConfig(
    vocab_size=16_384,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=2048,
)
TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
SIZES = (1, 4, 8, 16, 32, 64)
CHECKED = 8
"""Tokens whose logits are compared."""


def write_gguf(base: LlamaForCausalLM, file: Path, kind: str) -> None:
    """The model as llama.cpp reads it; matrices of the given type, norms in float32."""
    config = base.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in base.state_dict().items():
        weight = tensor.float()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = interleaved(weight, config.head_dim)
        values = weight.numpy()
        target = names.get_name(name, (".weight",))
        if values.ndim == 1 or kind == "f32":
            writer.add_tensor(target, values)
        else:
            writer.add_tensor(
                target, gguf.quants.quantize(values, TYPES[kind]), raw_dtype=TYPES[kind]
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weight: torch.Tensor, width: int) -> torch.Tensor:
    """Rotary pairs side by side, as llama.cpp has them, instead of half a head apart."""
    return weight.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2).contiguous()


class LlamaCpp:
    """A GGUF model in llama.cpp that decodes batches behind a prompt and forgets them again.

    Args:
        precise: attention in float32; otherwise as llama.cpp has it by default, in float16.
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
        """The logits [n, V] of tokens behind the prompt."""
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


class Medusa:
    """The same model here: verification behind the same prompt, and a whole step with shared
    lm_head.
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
        self.cache = self.model.new_cache(512, [512])
        with torch.inference_mode():
            _, self.hidden = self.model.prefill(ids, torch.ones_like(ids), self.cache)

    @torch.inference_mode()
    def decode(self, tokens: list[int]) -> np.ndarray:
        """The logits [CHECKED, V] of tokens behind the prompt, one after the other."""
        logits, _ = self.model.verify(torch.tensor([tokens]), self.chain, self.cache)
        return logits[0].numpy()

    @torch.inference_mode()
    def verify(self, tokens: list[int]) -> None:
        """A tree of as many nodes."""
        self.model.verify(torch.tensor([tokens]), self.trees[len(tokens)], self.cache)

    @torch.inference_mode()
    def draft(self, tokens: list[int]) -> None:
        """What a step asks of the heads besides; nothing where it decodes plainly."""
        if len(tokens) > 1:
            self.model.draft_logits(self.hidden, self.trees[len(tokens)].max_depth)


def milliseconds(call: Callable[[], Any], repeats: int) -> float:
    """Median of some calls in a row, after one that wakes the threads up."""
    took = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        took.append(time.perf_counter() - started)
    return 1000 * statistics.median(took[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5, help="calls in a row each round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    base = LlamaForCausalLM(CONFIG).eval()
    base.load_state_dict(
        {name: weight.half().float() for name, weight in base.state_dict().items()}
    )
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    prompt = torch.randint(CONFIG.vocab_size, (options.context,)).tolist()
    tokens = torch.randint(CONFIG.vocab_size, (max(SIZES),)).tolist()
    ours = {
        name + (", 16 bits" if half else ""): Medusa(base, prompt, compiled, half)
        for half in (False, True)
        for name, compiled in {"base model": False, "base model, compiled": True}.items()
    }
    eager = ours["base model"]
    with tempfile.TemporaryDirectory() as folder:
        theirs = {}
        for kind in TYPES:
            write_gguf(base, Path(folder) / kind, kind)
            theirs[kind] = LlamaCpp(Path(folder) / kind, prompt, options.threads)
        precise = LlamaCpp(Path(folder) / "f32", prompt, options.threads, precise=True)
        decoding: dict[str, Any] = {**ours, "precise": precise, **theirs}
        difference = {
            kind: float(
                np.abs(each.decode(tokens[:CHECKED]) - eager.decode(tokens[:CHECKED])).max()
            )
            for kind, each in decoding.items()
        }
        if max(difference[kind] for kind in (*ours, "precise")) > 1e-3:
            raise RuntimeError(f"not all compute the same: logits differ by {difference}")
        methods: dict[str, Callable[[list[int]], Any]] = {
            **{name: each.verify for name, each in ours.items()},
            "heads": eager.draft,
            **{f"llama.cpp {kind}": each.decode for kind, each in theirs.items()},
        }
        rounds: list[dict[str, dict[str, float]]] = []
        for _ in range(options.rounds):
            rounds.append({})
            for nodes in SIZES:
                rounds[-1][str(nodes)] = {
                    name: milliseconds(partial(call, tokens[:nodes]), options.repeats)
                    for name, call in methods.items()
                }
    medians = {
        name: {str(n): statistics.median(each[str(n)][name] for each in rounds) for n in SIZES}
        for name in methods
    }
    ratios = {
        f"{name} / llama.cpp {kind}": {
            str(n): statistics.median(
                each[str(n)][name] / each[str(n)][f"llama.cpp {kind}"] for each in rounds
            )
            for n in SIZES
        }
        for kind in TYPES
        for name in ours
    }
    made = provenance() | {"llama_cpp_python": llama_cpp.__version__}
    shown = Table(
        "ms",
        *map(str, SIZES),
        title=f"{base.num_parameters() / 1e6:.0f}M parameters, {made['device']}",
    )
    for name, row in medians.items():
        shown.add_row(name, *(f"{value:.1f}" for value in row.values()))
    for name, row in ratios.items():
        shown.add_row(name, *(f"{value:.2f}x" for value in row.values()))
    console = Console(width=120)
    console.print(shown)
    report = {"provenance": made, "context": options.context, "largest_difference": difference}
    report |= {"ms": medians, "ratios": ratios, "rounds": rounds}
    console.print(f"written to {write_json(options.output, report, 'llama-cpp')}")


if __name__ == "__main__":
    main()
