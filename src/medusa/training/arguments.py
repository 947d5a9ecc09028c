"""Translation of a recipe into transformers' `TrainingArguments`, for the devices at hand."""

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


def training_arguments(
    recipe: Recipe,
    stage: Stage,
    epochs: float,
    folder: Path,
    examples: int,
    evaluated: bool,
    **options: Any,
) -> TrainingArguments:
    """Return the arguments of transformers' `Trainer` for a stage of the recipe.

    Args:
        recipe: recipe of the run.
        stage: stage to train.
        epochs: passes over the data.
        folder: folder of checkpoints.
        examples: number of training examples, or of packed rows.
        evaluated: True if there is evaluation data.
        options: further arguments, such as `report_to`.

    Raises:
        ValueError: the batch size is not a multiple of the micro-batches of all devices, or Muon
            cannot run.
    """
    _check_muon(recipe)
    steps = count_steps(recipe, examples, epochs, recipe.batch_size)
    rate = recipe.lr * (recipe.heads_lr_factor if stage == "heads" else 1.0)
    result = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=warmup_steps(recipe, steps),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=adamw_name() if recipe.optimizer in ("auto", MUON) else recipe.optimizer,
        bf16=recipe.bf16,
        use_cpu=options.pop("use_cpu", not torch.accelerator.is_available()),
        seed=recipe.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to=options.pop("report_to", "none"),
        **_batch_arguments(recipe),
        **_interval_arguments(recipe, steps, evaluated),
        **options,
    )
    # With several GPUs in one process, Trainer would use DataParallel, which splits batches itself.
    result._n_gpu = min(result.n_gpu, 1)
    return result


def _check_muon(recipe: Recipe) -> None:
    if recipe.optimizer == MUON and _is_sharded():
        raise ValueError(
            "optimizer muon needs whole matrices: let each process hold the model (torchrun), or "
            "leave it"
        )
    if recipe.optimizer == MUON and not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"optimizer muon needs torch 2.9 or newer; this is {torch.__version__}: pip install -U "
            "torch"
        )


def _batch_arguments(recipe: Recipe) -> dict[str, int]:
    """Return the arguments that divide a batch among devices and micro-batches."""
    micro, devices = micro_batch(recipe, recipe.batch_size), processes().num_processes
    if recipe.batch_size % (micro * devices):
        raise ValueError(
            f"batch_size {recipe.batch_size} is no multiple of micro_batch_size {micro} times "
            f"{devices} device(s)"
        )
    return {
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": recipe.batch_size // (micro * devices),
    }


def _interval_arguments(recipe: Recipe, steps: int, evaluated: bool) -> dict[str, Any]:
    """Return the arguments that say when to log, evaluate and save."""
    return {
        "logging_steps": min(recipe.log_every, steps),
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if evaluated and recipe.evaluate_every else "no",
        "eval_steps": recipe.evaluate_every or None,
        "save_strategy": "steps" if recipe.save_every else "no",
        "save_steps": recipe.save_every or 500,
    }


def micro_batch(recipe: Recipe, batch_size: int) -> int:
    """Return the number of rows that a device computes at once, for batches of `batch_size`."""
    return min(recipe.micro_batch_size, batch_size)


def count_steps(recipe: Recipe, rows: int, epochs: float, batch_size: int) -> int:
    """Return the number of steps that transformers' `Trainer` takes for `rows` rows."""
    at_once = micro_batch(recipe, batch_size) * processes().num_processes
    per_epoch = math.ceil(math.ceil(rows / at_once) / max(1, batch_size // at_once))
    return max(1, math.ceil(epochs * max(1, per_epoch)))


def warmup_steps(recipe: Recipe, steps: int) -> int:
    """Return the number of warm-up steps: the recipe's, but at most a tenth of all steps."""
    return min(recipe.warmup_steps, math.ceil(steps / 10))


def processes() -> PartialState:
    """Return accelerate's state of the processes that a launcher (torchrun, accelerate) started."""
    return PartialState(cpu=not torch.accelerator.is_available())


def adamw_name() -> str:
    """Return transformers' name of AdamW: the 8-bit one (appendix B.2) if bitsandbytes can run it.

    bitsandbytes cannot handle weights that FSDP or DeepSpeed shard.
    """
    if _is_sharded():
        return "adamw_torch"
    available = torch.cuda.is_available() and find_spec("bitsandbytes") is not None
    return "adamw_bnb_8bit" if available else "adamw_torch"


def _is_sharded() -> bool:
    """Return True if accelerate was started with FSDP or DeepSpeed, which shard the weights."""
    engines = (os.environ.get(f"ACCELERATE_USE_{engine}", "") for engine in ("FSDP", "DEEPSPEED"))
    return any(value.lower() in ("1", "true") for value in engines)
