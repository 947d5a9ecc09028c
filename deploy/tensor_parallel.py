"""Decode with a base model that is split over several processes (tensor parallelism).

    torchrun --nproc-per-node 2 deploy/tensor_parallel.py MODEL --base BASE --prompt "Hello"

transformers splits each layer of the base model by the plan that the model's class brings; every
process has the whole heads, drafts the same candidates and accepts the same ones. With GPUs each
process takes one. All processes must decode the same prompts in the same order with a fixed tree: a
tree that adapts to measured times could differ between processes, which would then wait for ever.
"""

from __future__ import annotations

import argparse
import os
import sys

import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.distributed import DistributedConfig

from medusa.loading import MedusaModel
from medusa.text import encode_text


def load_base(name: str, dtype: str) -> PreTrainedModel:
    """Return the base model, split over the processes of torchrun; whole without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    plan = DistributedConfig(tp_plan="auto")
    return AutoModelForCausalLM.from_pretrained(name, dtype=dtype, distributed_config=plan)


def own_share(base: PreTrainedModel) -> float:
    """Return the share of the base model's weights that this process holds."""
    weights = list(base.parameters())
    own = [each.to_local() if isinstance(each, DTensor) else each for each in weights]
    return sum(each.numel() for each in own) / sum(each.numel() for each in weights)


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub id of the heads")
    parser.add_argument("--base", required=True, help="folder or hub id of the base model")
    parser.add_argument("--prompt", action="append", required=True, help="may be repeated")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="(default: 256)")
    parser.add_argument("--dtype", default="auto", help="of the weights (default: auto)")
    return parser.parse_args()


def main() -> None:
    """Decode the prompts; the first process prints the answers."""
    options = parse_options()
    base = load_base(options.base, options.dtype)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    model = MedusaModel.from_pretrained(options.model, base=base)
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        print(f"this process holds {own_share(base):.0%} of the weights", file=sys.stderr)
    settings = {"max_new_tokens": options.max_new_tokens, "do_sample": False, "tree": model.tree}
    for prompt in options.prompt:
        ids = encode_text(tokenizer, prompt).to(model.device)
        output = model.generate(ids, **settings)
        if first:
            print(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
