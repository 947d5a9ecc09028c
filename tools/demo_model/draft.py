"""Make a draft model of the embedded model: `python -m tools.demo_model.draft --output FOLDER`.

It is a new Llama of 0.4 million parameters, which learns the embedded model's tasks.
"""

from __future__ import annotations

import itertools
import random
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from medusa import demo
from medusa.data.chats import Encoder, Example
from medusa.loading import NamedModel
from tools.drafts import make_draft, positive, split, training_parser

from .backbone import look_back
from .recipe import EVEN
from .stream import varied_tasks

FIRST_TASK = 40_000_000
"""Number of the first task that the draft model learns from; no benchmark uses these tasks."""
HEAD_SIZE = 32
"""Size of an attention head."""


def narrow_llama(base: PreTrainedModel, layers: int, hidden_size: int) -> PreTrainedModel:
    """Return a new Llama with the base model's vocabulary.

    Its first attention head looks at the token before, from which copying is learnt (`look_back`).

    Raises:
        ValueError: the hidden size is no multiple of the size of an attention head.
    """
    if hidden_size % HEAD_SIZE:
        raise ValueError(f"--hidden-size {hidden_size}: it must be a multiple of {HEAD_SIZE}")
    known = base.config
    draft = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=known.vocab_size,
            hidden_size=hidden_size,
            intermediate_size=8 * hidden_size // 3,
            num_hidden_layers=layers,
            num_attention_heads=hidden_size // HEAD_SIZE,
            max_position_embeddings=known.max_position_embeddings,
            tie_word_embeddings=True,
            bos_token_id=known.bos_token_id,
            eos_token_id=known.eos_token_id,
            pad_token_id=known.pad_token_id,
        )
    )
    look_back(draft)
    return draft


def task_examples(tokenizer: PreTrainedTokenizerBase, count: int, max_length: int) -> list[Example]:
    """Return the embedded model's tasks and their answers; no benchmark uses these tasks."""
    encode = Encoder(tokenizer, max_length=max_length)
    tasks = varied_tasks(EVEN, tokenizer, random.Random(0), FIRST_TASK)
    chats = (
        [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": task.answer}]
        for task in itertools.islice(tasks, count)
    )
    examples = (encode(chat).cut(max_length) for chat in chats)
    return [example for example in examples if example.learnt]


def main() -> None:
    """Make the draft model, or say in one line why that is not possible."""
    parser = training_parser(__doc__, layers=2, lr=5e-3)
    parser.add_argument(
        "--hidden-size", type=positive, default=96, help="size of hidden states (default: 96)"
    )
    parser.add_argument(
        "--tasks", type=positive, default=9_000, help="tasks to learn from (default: 9,000)"
    )
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    try:
        named = NamedModel.find(demo.heads_folder(), dtype=torch.float32)
        base, tokenizer = named.load_base().eval(), named.tokenizer()
        draft = narrow_llama(base, options.layers, options.hidden_size)
        examples = split(task_examples(tokenizer, options.tasks, options.max_length))
        make_draft(draft, base, tokenizer, examples, options)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
