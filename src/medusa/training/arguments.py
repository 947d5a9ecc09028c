"""A recipe in the words of transformers, for the devices and processes there are."""

from __future__ import annotations

import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from .recipe import MUON, Recipe, Stage


def arguments(
    recipe: Recipe,
    stage: Stage,
    epochs: float,
    folder: Path,
    examples: int,
    evaluated: bool,
    **options: Any,
) -> TrainingArguments:
    """What a stage of the recipe asks of a trainer.

    Raises:
        ValueError: the batch size cannot be made of micro-batches on so many devices, or there is
            no Muon for them.
    """
    if recipe.optimizer == MUON and _spread():
        raise ValueError(
            "optimizer muon needs whole matrices: let each process hold the model (torchrun), or "
            "leave it"
        )
    if recipe.optimizer == MUON and not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"optimizer muon needs torch 2.9 or newer; this is {torch.__version__}: pip install -U "
            "torch"
        )
    micro, whole = micro_batch(recipe, recipe.batch_size), processes().num_processes
    if recipe.batch_size % (micro * whole):
        raise ValueError(
            f"batch_size {recipe.batch_size} is no multiple of micro_batch_size {micro} times "
            f"{whole} device(s)"
        )
    steps = count_steps(recipe, examples, epochs, recipe.batch_size)
    rate = recipe.lr * (recipe.heads_lr_factor if stage == "heads" else 1.0)
    made = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=warm_up(recipe, steps),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=adamw() if recipe.optimizer in ("auto", MUON) else recipe.optimizer,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=recipe.batch_size // (micro * whole),
        bf16=recipe.bf16,
        use_cpu=options.pop("use_cpu", not torch.accelerator.is_available()),
        logging_steps=min(recipe.log_every, steps),
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluated and recipe.evaluate_every else "no",
        eval_steps=recipe.evaluate_every or None,
        save_strategy="steps" if recipe.save_every else "no",
        save_steps=recipe.save_every or 500,
        seed=recipe.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to=options.pop("report_to", "none"),
        **options,
    )
    made._n_gpu = min(made.n_gpu, 1)  # several in one process would be DataParallel's
    return made


def micro_batch(recipe: Recipe, batch_size: int) -> int:
    """Return the rows that a device computes at once for batches of this size."""
    return min(recipe.micro_batch_size, batch_size)


def count_steps(recipe: Recipe, rows: int, epochs: float, batch_size: int) -> int:
    """Return how many steps transformers' `Trainer` takes over so many rows."""
    at_once = micro_batch(recipe, batch_size) * processes().num_processes
    per_epoch = math.ceil(math.ceil(rows / at_once) / max(1, batch_size // at_once))
    return max(1, math.ceil(epochs * max(1, per_epoch)))


def warm_up(recipe: Recipe, steps: int) -> int:
    """Return the steps in which the learning rate rises: a tenth of all at most."""
    return min(recipe.warmup_steps, math.ceil(steps / 10))


def processes() -> PartialState:
    """This process among those that a launcher (torchrun, accelerate) started."""
    return PartialState(cpu=not torch.accelerator.is_available())


def adamw() -> str:
    """AdamW as transformers calls it: in 8 bits (appendix B.2) where bitsandbytes runs on a GPU.

    bitsandbytes knows nothing of weights that an engine spreads over devices.
    """
    if _spread():
        return "adamw_torch"
    there = torch.cuda.is_available() and find_spec("bitsandbytes") is not None
    return "adamw_bnb_8bit" if there else "adamw_torch"


def _spread() -> bool:
    """Whether an engine that accelerate starts spreads the weights over devices."""
    engines = (os.environ.get(f"ACCELERATE_USE_{engine}", "") for engine in ("FSDP", "DEEPSPEED"))
    return any(told.lower() in ("1", "true") for told in engines)
