"""Make a draft model of SmolLM2: `python -m tools.smollm2.draft --data FILE --output FOLDER`.

It has the model's embeddings, first layers, final norm and lm_head, and learns from the model's own
answers (`tools.smollm2.train`, or `medusa distill`). `--model` names another model.
"""

from __future__ import annotations

import sys

import torch

from medusa.cli.models import SMOLLM2, find
from medusa.cli.options import ModelOptions
from medusa.data.examples import read_examples
from tools.drafts import first_layers, make_draft, split, training_parser


def main() -> None:
    """Make the draft model, or say in one line why that is not possible."""
    parser = training_parser(__doc__, layers=6, lr=1e-3)
    parser.add_argument("--model", default=SMOLLM2, help="base model (default: SmolLM2)")
    parser.add_argument("--data", required=True, help="the base model's answers")
    parser.add_argument("--held-out", help="other answers (default: some of --data)")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    try:
        named = find(ModelOptions(model=options.model, dtype="float32"))
        base, tokenizer = named.load_backbone().eval(), named.tokenizer()
        draft = first_layers(base, options.layers)
        how = {"max_length": options.max_length, "vocab_size": base.config.vocab_size}
        examples = read_examples(options.data, tokenizer, **how).examples
        if options.held_out is None:
            parts = split(examples)
        else:
            parts = examples, read_examples(options.held_out, tokenizer, **how).examples
        make_draft(draft, base, tokenizer, parts, options)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
