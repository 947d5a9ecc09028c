"""`MedusaTrainer`: transformers' `Trainer` for one stage of a recipe.

Losses are averaged over the targets of a whole step, on all devices and micro-batches, so that the
result does not depend on how a batch is divided.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import get_last_checkpoint

from ..core.tree import CandidateTree
from ..files import Schema, read_json, write_json
from .arguments import training_arguments
from .checkpoints import UNFINISHED, CheckpointTrainer
from .log import LogPrinter, StepTimer
from .losses import token_counts
from .metrics import TOP, EvaluationSums
from .optimizer import make_optimizer, parameter_groups
from .progress import progress
from .recipe import Recipe, Stage
from .training_model import TrainingModel

END, STATE = "end", "state.json"
"""Folder of the weights at the end of a stage, and its file of a `StageEnd`, written after them."""


class StageEnd(Schema):
    """How a stage ended.

    Attributes:
        steps: number of steps trained.
        perplexity: the backbone's perplexity before training; None without evaluations.
        metrics: metrics of the last evaluation; None until it is done.
    """

    steps: int
    perplexity: float | None
    metrics: dict[str, float] | None


@dataclass(frozen=True)
class StageData:
    """The data of a stage.

    Attributes:
        collate: function of rows to a batch.
        training: rows to train on.
        evaluation: rows to evaluate on; empty for no evaluation.
    """

    collate: Callable[[Any], dict[str, Tensor]]
    training: Sequence[Any]
    evaluation: Sequence[Any]


class NotFiniteError(RuntimeError):
    """A loss or a gradient that is NaN or infinite; the message names step, head and batch."""


class MedusaTrainer(CheckpointTrainer):
    """A trainer for one stage of a recipe.

    Args:
        model: backbone and heads; `requires_grad` of their parameters decides what is trained.
        recipe: recipe of the run.
        stage: stage of the recipe.
        epochs: passes over the data.
        folder: folder of checkpoints and logs.
        data: rows to train and to evaluate on.
        tree: candidate tree whose expected acceleration rate evaluations report.
        perplexity: the backbone's perplexity before training; by default that of the first
            evaluation.
        say: prints a line of the log; None prints nothing.
        options: further arguments of transformers' `TrainingArguments`.

    Raises:
        ValueError: the model is divided over devices in a way that cannot be trained.
    """

    def __init__(
        self,
        model: TrainingModel,
        recipe: Recipe,
        stage: Stage,
        epochs: float,
        folder: Path,
        data: StageData,
        tree: CandidateTree,
        perplexity: float | None = None,
        say: Callable[[str], None] | None = None,
        **options: Any,
    ):
        evaluates = bool(data.evaluation)
        args = training_arguments(
            recipe, stage, epochs, folder, len(data.training), evaluates, **options
        )
        _check_sharding(model)  # ZeRO-3 is known only once there are training arguments
        self.recipe, self.stage, self.tree = recipe, stage, tree
        self.evaluation, self.perplexity, self.say = data.evaluation, perplexity, say
        self.timer = StepTimer()
        super().__init__(
            model=model,
            args=args,
            data_collator=data.collate,
            train_dataset=data.training,
            eval_dataset=data.evaluation or None,
        )
        # The loss is divided by the targets of the whole step already.
        self.loss_is_scaled_for_ga = True
        self._parts: list[Tensor] = []
        self.remove_callback(PrinterCallback)
        if say is not None:
            self.add_callback(LogPrinter(self.timer, evaluates, say))
        if evaluates:
            self.add_callback(_EvaluateFirst(self))

    def train_from_checkpoint(self) -> None:
        """Train to the end, from the last checkpoint if there is one.

        Raises:
            NotFiniteError: a loss or a gradient is not finite.
        """
        shutil.rmtree(Path(self.args.output_dir) / UNFINISHED, ignore_errors=True)
        Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
        self.train(resume_from_checkpoint=get_last_checkpoint(self.args.output_dir))

    def run_stage(self) -> dict[str, float]:
        """Train unless an earlier run has finished the stage; return the last evaluation's metrics.

        The weights are saved before the last evaluation, so that a run that fails in it loses
        nothing: the next run only evaluates.

        Raises:
            NotFiniteError: a loss or a gradient is not finite.
        """
        folder = Path(self.args.output_dir) / END
        end = self._read_end(folder)
        self.accelerator.wait_for_everyone()
        if end is None:
            self.train_from_checkpoint()
            self.save_model(str(folder))
            end = StageEnd(steps=self.state.global_step, perplexity=self.perplexity, metrics=None)
            self._write_end(folder, end)
        else:
            self._load_from_checkpoint(str(folder))
            self.state.global_step, self.perplexity = end.steps, end.perplexity
        if end.metrics is None:
            end = end.model_copy(update={"metrics": self.last_evaluation()})
            self._write_end(folder, end)
        return end.metrics or {}

    def _read_end(self, folder: Path) -> StageEnd | None:
        """Return how the stage ended; None if it has to be trained further."""
        if not (folder / STATE).is_file():
            return None
        end = read_json(folder / STATE, StageEnd)
        # A sharded model can be evaluated only after training, which shards it. Training again from
        # the last checkpoint does that.
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return None if end.metrics is None and sharded else end

    def _write_end(self, folder: Path, end: StageEnd) -> None:
        if self.args.should_save:
            write_json(folder / STATE, end.model_dump(), indent=1)

    # --- losses

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Return the targets of a step [1 + K], over its micro-batches and all devices."""
        num_heads = self.training_model.heads.config.num_heads
        counts = torch.stack([token_counts(batch, num_heads) for batch in batch_samples]).sum(0)
        gathered: Tensor = self.accelerator.gather(counts.to(device)[None])
        return gathered.sum(0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a micro-batch: its share of the step's loss (eq. 1 or eq. 2).

        Raises:
            NotFiniteError: the loss is not finite.
        """
        rows = inputs.pop("rows", None)
        result = model(**inputs, counts=num_items_in_batch, weight=self._heads_weight())
        parts = result["parts"]
        if not torch.isfinite(result["loss"]):
            self._fail_not_finite(parts, rows)
        if self.model.training:
            self._parts.append(parts)
        # Gradients are averaged over processes, but each loss is already divided by the targets of
        # all processes: undo the average.
        loss = result["loss"] * self.accelerator.num_processes
        return (loss, result) if return_outputs else loss

    def _heads_weight(self) -> float:
        """Return lambda_0 of eq. 2 at this step; appendix B.4 lets it grow along a sine."""
        lambda_0 = self.recipe.heads_weight()
        if self.recipe.lambda0_schedule == "sine" and self.stage == "both":
            done = (self.state.global_step + 1) / max(1, self.state.max_steps)
            lambda_0 *= math.sin(math.pi / 2 * done)
        return lambda_0

    def _fail_not_finite(self, parts: Tensor, rows: Tensor | None) -> None:
        """Raise the error of a loss that is not finite; it names the losses and the examples."""
        names = ["the backbone", *(f"head {number}" for number in range(1, len(parts)))]
        wrong = [
            name
            for name, part in zip(names, parts.tolist(), strict=True)
            if not math.isfinite(part)
        ]
        batch = ""
        if rows is not None:
            batch = f", in the batch of examples {', '.join(map(str, rows.tolist()))}"
        raise NotFiniteError(
            f"step {self.state.global_step + 1}: the loss of {', '.join(wrong) or 'the sum'} is "
            f"not finite{batch}. {self._last_checkpoint()} Lower lr, or look at these examples"
        )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not math.isfinite(float(norm)):
            raise NotFiniteError(
                f"step {self.state.global_step + 1}: gradients are not finite. "
                f"{self._last_checkpoint()}"
            )
        return norm

    def _last_checkpoint(self) -> str:
        last = get_last_checkpoint(self.args.output_dir)
        return f"The last good checkpoint is {last}." if last else "There is no checkpoint yet."

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log an entry; training losses get the mean losses of backbone and heads added."""
        if self._parts and "loss" in logs:
            # Each part is its micro-batch's share of a step's mean loss: their sum is the mean.
            steps = max(1, len(self._parts) / self.args.gradient_accumulation_steps)
            means = self.accelerator.gather(torch.stack(self._parts).sum(0)[None]).sum(0) / steps
            names = ["backbone", *(f"head_{number}" for number in range(1, len(means)))]
            logged = names if self.training_model.backbone_learns else names[1:]
            logs |= {
                f"loss_{name}": value
                for name, value in zip(names, means.tolist(), strict=True)
                if name in logged
            }
            self._parts = []
        super().log(logs, start_time)

    # --- optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer, with one learning rate each for heads and backbone (2.2.2)."""
        optimizer: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        if optimizer is None:
            model = model or self.model
            # As in transformers, biases and norms do not decay.
            decaying = self.get_decay_parameter_names(model) if self.recipe.weight_decay else ()
            groups = parameter_groups(model, self.recipe, self.stage, set(decaying))
            optimizer = make_optimizer(groups, self.training_model, self.recipe, self.args)
        self.optimizer = optimizer
        return optimizer

    # --- evaluation

    @torch.no_grad()
    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Evaluate and log; return the metrics, whose names begin with the prefix.

        The metrics are the loss and the top-1 to top-5 accuracy of each head, the backbone's
        perplexity and its change, and the expected acceleration rate of the tree.
        """
        begun = time.monotonic()
        sums = self._evaluation_sums()
        self.timer.add_evaluation(time.monotonic() - begun)
        metrics = self._metrics(sums, metric_key_prefix)
        self.log(dict(metrics))  # a copy, because the epoch is added to what is logged
        control = self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, metrics)
        return metrics

    def _evaluation_sums(self) -> EvaluationSums:
        """Return the sums over all evaluation rows.

        Every process evaluates all rows: the forward pass of a sharded model needs all processes to
        take part in each batch.
        """
        model = self.model_wrapped if self.model_wrapped is not None else self.model
        training = model.training
        model.eval()
        sums = EvaluationSums.zeros(self.training_model.heads.config.num_heads)
        size, count = self.args.per_device_eval_batch_size, len(self.evaluation)
        shown = self.say is not None and self.is_world_process_zero()
        with progress("evaluation", count, "examples", self.say, shown) as advance:
            for begin in range(0, count, size):
                # One row at a time: cached hidden states read no slices.
                rows = [self.evaluation[place] for place in range(begin, min(begin + size, count))]
                batch = self._prepare_inputs(self.data_collator(rows))
                batch.pop("rows", None)
                with self.accelerator.autocast():
                    sums.add(model(**batch, top=TOP))
                advance(len(rows))
        model.train(training)
        return sums

    def last_evaluation(self) -> dict[str, float]:
        """Return the metrics after the last step, evaluated now if not yet; empty without data."""
        for entry in reversed(self.state.log_history):
            if "eval_perplexity" in entry and entry["step"] == self.state.global_step:
                return {name: value for name, value in entry.items() if name.startswith("eval_")}
        return self.evaluate() if self.evaluation else {}

    def _metrics(self, sums: EvaluationSums, prefix: str) -> dict[str, float]:
        """Return the metrics by name; the first evaluation sets the perplexity before training."""
        name, perplexity = f"{prefix}_perplexity", sums.perplexity
        first = (entry[name] for entry in self.state.log_history if name in entry)
        self.perplexity = self.perplexity or next(first, perplexity)
        metrics = {
            "perplexity": perplexity,
            "perplexity_change": perplexity - self.perplexity,
            **sums.head_metrics(),
            "acceleration_rate": float(self.tree.expected(sums.accuracies)),
        }
        return {f"{prefix}_{name}": value for name, value in metrics.items()}


class _EvaluateFirst(TrainerCallback):
    """A callback that evaluates before the first step, for later evaluations to compare with."""

    def __init__(self, trainer: MedusaTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if not state.global_step:
            self.trainer.evaluate()


def _check_sharding(model: TrainingModel) -> None:
    """Check that a model divided over devices can be trained.

    Raises:
        ValueError: DeepSpeed ZeRO-3 is to shard a backbone that is trained, or heads with a draft
            vocabulary; or a device map divides the backbone.
    """
    if is_deepspeed_zero3_enabled() and model.backbone_learns:
        raise ValueError(
            "DeepSpeed ZeRO-3 spreads a backbone that is frozen: train the heads alone (method "
            "medusa-1), or spread the model by FSDP2 (configs/fsdp2.yaml)"
        )
    if is_deepspeed_zero3_enabled() and model.heads.token_map is not None:
        raise ValueError(
            "draft_vocab_size reads rows of weights that DeepSpeed ZeRO-3 spreads: leave it out"
        )
    if len(set(getattr(model.base, "hf_device_map", {"": 0}).values())) > 1:
        raise ValueError(
            "the base model is spread by device_map, which cannot be trained here: leave it out, "
            "and spread the model by FSDP2 (configs/fsdp2.yaml)"
        )
