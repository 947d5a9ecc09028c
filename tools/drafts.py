"""Draft models for `medusa bench --method draft=FOLDER`, trained on answers of their base model.

`python -m tools.demo_model.draft` and `python -m tools.smollm2.draft` make them.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from medusa.data.chats import IGNORED, Example
from medusa.data.examples import batches, collator
from medusa.hardware.provenance import this_device

HELD_OUT = 20
"""One example of so many is held out."""


def first_layers(base: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Return a model with the base model's embeddings, first layers, final norm and lm_head.

    Raises:
        ValueError: the base model does not have more layers than that.
    """
    if layers >= base.config.num_hidden_layers:
        raise ValueError(
            f"--layers {layers}: a draft of a model of {base.config.num_hidden_layers} layers must "
            "have fewer"
        )
    config = copy.deepcopy(base.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    draft = type(base)(config).to(base.dtype)
    weights = base.state_dict()
    draft.load_state_dict({name: weights[name] for name in draft.state_dict()})
    return draft


@dataclass
class Batches:
    """Batches of padded examples, as a data set of a `Trainer`."""

    rows: Sequence[Sequence[Sequence[Example]]]
    pad: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        batch = collator(self.pad)(self.rows[number])
        return {name: batch[name] for name in ("input_ids", "position_ids", "labels")}


def answer_logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits [M, V] before each of a batch's tokens that are learnt."""
    learnt = batch["labels"][:, 1:] != IGNORED
    # padding stands on the right, where causal attention does not see it
    output = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"])
    chosen: Tensor = output.logits[:, :-1][learnt].float()
    return chosen


class DraftTrainer(Trainer):
    """Training of a draft model on the tokens of answers.

    Args:
        teacher: base model whose distribution of each token is learnt instead; None learns tokens.
        options: arguments of `Trainer`.
    """

    def __init__(self, teacher: PreTrainedModel | None, **options: Any):
        super().__init__(**options)
        self.teacher = teacher

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        if self.teacher is None:
            labels = inputs["labels"][:, 1:]
            targets = labels[labels != IGNORED]
        else:
            with torch.no_grad():
                targets = answer_logits(self.teacher, inputs).softmax(-1)
        return F.cross_entropy(answer_logits(model, inputs), targets)


@torch.inference_mode()
def agreement(draft: PreTrainedModel, base: PreTrainedModel, held_out: Batches) -> tuple[int, int]:
    """Return how often the draft's best token is the base model's, and the number of tokens."""
    same = total = 0
    for number in range(len(held_out)):
        batch = {name: each.to(base.device) for name, each in held_out[number].items()}
        ours, theirs = (answer_logits(model, batch).argmax(-1) for model in (draft, base))
        same += int((ours == theirs).sum())
        total += len(ours)
    return same, total


def train(
    draft: PreTrainedModel, base: PreTrainedModel, data: Batches, options: argparse.Namespace
) -> None:
    """Train a draft model in place."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=options.epochs,
            learning_rate=options.lr,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,  # a share of all steps
            per_device_train_batch_size=1,  # a batch of the data set
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        DraftTrainer(
            base if options.soft else None,
            model=draft,
            args=arguments,
            train_dataset=data,
            data_collator=lambda batches: batches[0],
        ).train()


def split(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Return the examples to train on, and held-out ones.

    Raises:
        ValueError: there is one example only.
    """
    if len(examples) < 2:
        raise ValueError("a draft model needs at least two answers, to train on and to hold out")
    learnt = [each for place, each in enumerate(examples) if place % HELD_OUT]
    return learnt, list(examples[::HELD_OUT])


def make_draft(
    draft: PreTrainedModel,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: tuple[list[Example], list[Example]],
    options: argparse.Namespace,
) -> None:
    """Train a draft model, print its agreement with the base model, and save it.

    Args:
        draft: new draft model with the base model's vocabulary.
        tokenizer: the base model's tokenizer.
        examples: those to train on, and held-out ones.
        options: those of `training_parser`.
    """
    for model in (draft, base):
        model.to(this_device())
    pad = tokenizer.pad_token_id or 0
    data, held_out = (Batches(list(batches(each, options.batch_tokens)), pad) for each in examples)
    print(f"{draft.num_parameters():,} parameters, {len(data)} batches an epoch", flush=True)
    same, total = agreement(draft.eval(), base, held_out)
    print(f"before: the base model's token at {same / total:.1%} of {total:,} held-out tokens")
    train(draft, base, data, options)
    same, total = agreement(draft.eval(), base, held_out)
    print(f"after: the base model's token at {same / total:.1%} of {total:,} held-out tokens")
    draft.generation_config = copy.deepcopy(base.generation_config)
    draft.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    print(f"written to {options.output}")


def training_parser(description: str | None, *, layers: int, lr: float) -> argparse.ArgumentParser:
    """Return a parser with the options of every draft model.

    Args:
        description: the command's docstring.
        layers: default of `--layers`.
        lr: default of `--lr`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the draft model")
    parser.add_argument(
        "--layers", type=positive, default=layers, help=f"number of layers (default: {layers})"
    )
    parser.add_argument(
        "--soft",
        action="store_true",
        help="learn the base model's distribution of each token, not the answers' tokens; takes "
        "longer",
    )
    parser.add_argument("--epochs", type=float, default=1, help="passes over the data (default: 1)")
    parser.add_argument("--lr", type=float, default=lr, help=f"peak learning rate (default: {lr})")
    parser.add_argument(
        "--batch-tokens", type=positive, default=2048, help="tokens of a batch (default: 2048)"
    )
    parser.add_argument(
        "--max-length",
        type=positive,
        default=1024,
        help="longer examples are cut to so many tokens (default: 1024)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of new weights (default: 0)")
    return parser


def positive(text: str) -> int:
    """Return a positive whole number of the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
