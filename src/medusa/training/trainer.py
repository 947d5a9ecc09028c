"""transformers' `Trainer` for a `Student`: averages exact over devices, whole checkpoints, measures
of heads.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import get_last_checkpoint

from ..core.tree import CandidateTree
from ..files import Schema, read_json, write_json
from .arguments import arguments
from .log import Lines, Pace
from .losses import token_counts
from .muon import Muon, matrices
from .progress import progress
from .recipe import MUON, Recipe, Stage
from .student import Student

SCHEDULER = "scheduler.pt"
"""Of a checkpoint: the learning rate's place, by the name that transformers gives it."""
WEIGHTS = "learnt.safetensors"
"""Of a checkpoint: what learns, and nothing else."""
UNFINISHED = "unfinished"
"""Where a checkpoint is written before it takes its place."""
END, STATE = "end", "state.json"
"""What has learnt by the end of a stage, and an `End`, which is written after it."""
TOP = 5
"""Ranks that evaluations count."""


class End(Schema):
    """How a stage ended.

    Attributes:
        steps: it took.
        perplexity: the backbone's before anything was trained; None without evaluations.
        metrics: of the last evaluation; None until that is done.
    """

    steps: int
    perplexity: float | None
    metrics: dict[str, float] | None


class NotFiniteError(RuntimeError):
    """A loss or a gradient became NaN or infinite; says at which step, of which head and batch."""


class StudentTrainer(Trainer):
    """Trains a student by one stage of a recipe.

    Args:
        student: says by `requires_grad` what learns.
        recipe: what to do.
        stage: which part of it.
        epochs: passes over the data.
        folder: of checkpoints and logs; one with checkpoints goes on from the last.
        collate: rows of the data to a batch.
        training, evaluation: the data.
        tree: whose expected acceleration rate evaluations tell.
        perplexity: the backbone's before anything was trained; by default what the first evaluation
            says.
        say: told every line of the log; None keeps it quiet.

    Raises:
        ValueError: DeepSpeed ZeRO-3 is to spread a backbone that learns or rows of a head
            vocabulary, or a device map spreads the backbone.
    """

    def __init__(
        self,
        student: Student,
        recipe: Recipe,
        stage: Stage,
        epochs: float,
        folder: Path,
        collate: Any,
        training: Sequence[Any],
        evaluation: Sequence[Any],
        tree: CandidateTree,
        perplexity: float | None = None,
        say: Callable[[str], None] | None = None,
        **options: Any,
    ):
        told = arguments(recipe, stage, epochs, folder, len(training), bool(evaluation), **options)
        if (
            is_deepspeed_zero3_enabled() and student.backbone_learns
        ):  # known once there are arguments
            raise ValueError(
                "DeepSpeed ZeRO-3 spreads a backbone that is frozen: train the heads alone (method "
                "medusa-1), "
                "or spread the model by FSDP2 (configs/fsdp2.yaml)"
            )
        if is_deepspeed_zero3_enabled() and student.tokens is not None:
            raise ValueError(
                "head_vocabulary data reads rows of weights that DeepSpeed ZeRO-3 spreads: take "
                "full"
            )
        if len(set(getattr(student.base, "hf_device_map", {"": 0}).values())) > 1:
            raise ValueError(
                "the base model is spread by device_map, which trains nothing here: leave it out, "
                "and spread the model by FSDP2 (configs/fsdp2.yaml)"
            )
        self.recipe, self.stage, self.tree = recipe, stage, tree
        self.evaluation, self.perplexity, self.say = evaluation, perplexity, say
        self.pace = Pace()
        super().__init__(
            model=student,
            args=told,
            data_collator=collate,
            train_dataset=training,
            eval_dataset=evaluation or None,
        )
        self.loss_is_scaled_for_ga = True
        self._parts: list[Tensor] = []
        self.remove_callback(PrinterCallback)
        if say is not None:
            self.add_callback(Lines(self.pace, bool(evaluation), say))
        if evaluation:
            self.add_callback(_EvaluatedFirst(self))

    def go(self) -> None:
        """Train to the end, from the last checkpoint if there is one.

        Raises:
            NotFiniteError: a loss or gradient is not finite.
        """
        shutil.rmtree(Path(self.args.output_dir) / UNFINISHED, ignore_errors=True)
        Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
        self.train(resume_from_checkpoint=get_last_checkpoint(self.args.output_dir))

    def finish(self) -> dict[str, float]:
        """`go`, unless that has ended before, and keep what it came to; returns the metrics of its
        last evaluation.

        What has learnt is written before the last evaluation, which another run can make up for.
        """
        folder = Path(self.args.output_dir) / END
        end = self._read_end(folder)
        self.accelerator.wait_for_everyone()
        if end is None:
            self.go()
            self.save_model(str(folder))
            end = End(steps=self.state.global_step, perplexity=self.perplexity, metrics=None)
            self._write_end(folder, end)
        else:
            self._load_from_checkpoint(str(folder))
            self.state.global_step, self.perplexity = end.steps, end.perplexity
        if end.metrics is None:
            end = end.model_copy(update={"metrics": self.last_evaluation()})
            self._write_end(folder, end)
        return end.metrics or {}

    def _read_end(self, folder: Path) -> End | None:
        """How the stage ended; None where it has to go on."""
        if not (folder / STATE).is_file():
            return None
        end = read_json(folder / STATE, End)
        spread = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return (
            None if end.metrics is None and spread else end
        )  # evaluates only what training has spread

    def _write_end(self, folder: Path, end: End) -> None:
        if self.args.should_save:
            write_json(folder / STATE, end.model_dump(), indent=1)

    # --- losses

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """[1 + K] tokens that backbone and heads learn from in a step, over its micro-batches and
        all devices.
        """
        heads = self.student.heads.config.num_heads
        counts = (
            torch.stack([token_counts(batch, heads) for batch in batch_samples]).sum(0).to(device)
        )
        gathered: Tensor = self.accelerator.gather(counts[None])
        return gathered.sum(0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        rows = inputs.pop("rows", None)
        told = model(**inputs, counts=num_items_in_batch, weight=self._heads_weight())
        parts = told["parts"]
        if not torch.isfinite(told["loss"]):
            self._stop(parts, rows)
        if self.model.training:
            self._parts.append(parts)
        # processes' gradients are averaged, and each has divided by the tokens of all
        loss = told["loss"] * self.accelerator.num_processes
        return (loss, told) if return_outputs else loss

    def _heads_weight(self) -> float:
        """lambda_0 at this step (appendix B.4's sine grows it to the end)."""
        weight = self.recipe.heads_weight()
        if self.recipe.lambda0_schedule == "sine" and self.stage == "both":
            weight *= math.sin(
                math.pi / 2 * (self.state.global_step + 1) / max(1, self.state.max_steps)
            )
        return weight

    def _stop(self, parts: Tensor, rows: Tensor | None) -> None:
        names = ["the backbone", *(f"head {number}" for number in range(1, len(parts)))]
        wrong = [
            name
            for name, part in zip(names, parts.tolist(), strict=True)
            if not math.isfinite(part)
        ]
        batch = (
            ""
            if rows is None
            else f", in the batch of examples {', '.join(map(str, rows.tolist()))}"
        )
        raise NotFiniteError(
            f"step {self.state.global_step + 1}: the loss of {', '.join(wrong) or 'the sum'} is "
            f"not finite{batch}. "
            f"{self._last_good()} Lower lr, or look at these examples"
        )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not math.isfinite(float(norm)):
            raise NotFiniteError(
                f"step {self.state.global_step + 1}: gradients are not finite. {self._last_good()}"
            )
        return norm

    def _last_good(self) -> str:
        last = get_last_checkpoint(self.args.output_dir)
        return f"The last good checkpoint is {last}." if last else "There is no checkpoint yet."

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As a trainer's, with the mean loss of each head since the last line."""
        if self._parts and "loss" in logs:
            # parts are shares of a step's average, one for each micro-batch and device
            steps = max(1, len(self._parts) / self.args.gradient_accumulation_steps)
            means = self.accelerator.gather(torch.stack(self._parts).sum(0)[None]).sum(0) / steps
            names = ["backbone", *(f"head_{number}" for number in range(1, len(means)))]
            shown = names if self.student.backbone_learns else names[1:]
            logs |= {
                f"loss_{name}": value
                for name, value in zip(names, means.tolist(), strict=True)
                if name in shown
            }
            self._parts = []
        super().log(logs, start_time)

    # --- optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Heads and backbone with a learning rate each (section 2.2.2)."""
        made: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        if made is None:
            groups = self._groups(model or self.model)
            if "bnb" in self.args.optim and any(
                p.numel() >= 2**31 for group in groups for p in group["params"]
            ):
                warnings.warn(
                    "a weight has more elements than bitsandbytes can count: AdamW in 32 bits",
                    stacklevel=2,
                )
                self.args.optim = "adamw_torch"
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.student.base)
            inside = matrices(self.student.base) if self.recipe.optimizer == MUON else set()
            by_muon = [p for group in groups for p in group["params"] if p in inside]
            for group in groups:
                group["params"] = [p for p in group["params"] if p not in inside]
            made = kind([group for group in groups if group["params"]], **settings)
            if by_muon:
                made = Muon(by_muon, made, self.recipe.lr, self.recipe.weight_decay)
        self.optimizer = made
        return made

    def _groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameters by learning rate and weight decay, which biases and norms are spared as in
        transformers.
        """
        rate, decay = self.recipe.lr, self.recipe.weight_decay
        rates = {False: rate, True: rate * self.recipe.heads_factor(self.stage)}
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        decaying = set(self.get_decay_parameter_names(model)) if decay else set()
        return [
            {
                "params": [
                    p for n, p in named if _of_heads(n) == of_heads and (n in decaying) == decays
                ],
                "lr": rates[of_heads],
                "weight_decay": decay if decays else 0.0,  # AdamW's own default is not 0
            }
            for of_heads in (False, True)
            for decays in (True, False)
        ]

    # --- evaluation

    @torch.no_grad()
    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Loss and top-1 to top-5 accuracy of every head, the backbone's perplexity, the tree's
        expected rate.

        Every process measures all of the data, so that all models that are spread over processes
        can.
        """
        model = self.model_wrapped if self.model_wrapped is not None else self.model
        training = model.training
        model.eval()
        heads = self.student.heads.config.num_heads
        sums, hits, counts = torch.zeros(1 + heads), torch.zeros(heads, TOP), torch.zeros(1 + heads)
        size, begun = self.args.per_device_eval_batch_size, time.monotonic()
        shown = self.say is not None and self.is_world_process_zero()
        with progress("evaluation", len(self.evaluation), "examples", self.say, shown) as advance:
            for begin in range(0, len(self.evaluation), size):
                rows = [
                    self.evaluation[place]
                    for place in range(begin, min(begin + size, len(self.evaluation)))
                ]
                batch = self._prepare_inputs(self.data_collator(rows))
                batch.pop("rows", None)
                with self.accelerator.autocast():
                    told = model(**batch, top=TOP)
                sums, hits, counts = (
                    sums + told["sums"].cpu(),
                    hits + told["hits"].cpu(),
                    counts + told["counts"].cpu(),
                )
                advance(len(rows))
        self.pace.evaluated(time.monotonic() - begun)
        model.train(training)
        metrics = self._metrics(
            sums / counts.clamp_min(1), hits / counts[1:, None].clamp_min(1), metric_key_prefix
        )
        self.log(dict(metrics))  # to which the epoch is added
        control = self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, metrics)
        return metrics

    def last_evaluation(self) -> dict[str, float]:
        """`evaluate`'s metrics after the last step, measured now if they were not then; empty
        without data.
        """
        for line in reversed(self.state.log_history):
            if "eval_perplexity" in line and line["step"] == self.state.global_step:
                return {name: value for name, value in line.items() if name.startswith("eval_")}
        return self.evaluate() if self.evaluation else {}

    def _metrics(self, losses: Tensor, accuracy: Tensor, prefix: str) -> dict[str, float]:
        told = {"perplexity": math.exp(min(50.0, float(losses[0])))}
        first = (
            each[f"{prefix}_perplexity"]
            for each in self.state.log_history
            if f"{prefix}_perplexity" in each
        )
        self.perplexity = self.perplexity or next(first, told["perplexity"])
        told["perplexity_change"] = told["perplexity"] - self.perplexity
        for head in range(len(accuracy)):
            told[f"loss_head_{head + 1}"] = float(losses[head + 1])
            told |= {
                f"head_{head + 1}_top_{rank + 1}": float(accuracy[head, rank])
                for rank in range(TOP)
            }
        told["acceleration_rate"] = float(self.tree.expected(accuracy.tolist()))
        return {f"{prefix}_{name}": value for name, value in told.items()}

    # --- checkpoints

    @property
    def student(self) -> Student:
        """The model itself, whatever wraps it."""
        unwrapped: Student = self.accelerator.unwrap_model(self.model)
        return unwrapped

    def learnt(self) -> dict[str, Tensor]:
        """The parameters that learn, whole, on the CPU; empty on processes that do not write."""
        learning = {
            name: each.detach()
            for name, each in self.student.named_parameters()
            if each.requires_grad
        }
        if self.is_deepspeed_enabled and self.model_wrapped is not self.model:
            state = self.accelerator.get_state_dict(self.model_wrapped) or {}
            learning = {name: state[name] for name in learning if name in state}
        kept = {}
        for name, tensor in learning.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.args.should_save:
                kept[name] = whole.to("cpu", copy=True).contiguous()
        return kept

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What learns; the rest is the base model's own files."""
        learnt = self.learnt()
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(learnt, folder / WEIGHTS)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Written beside, then renamed: a checkpoint that is there is whole."""
        place = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        self.args.output_dir = str(place / UNFINISHED)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(place)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            shutil.rmtree(place / name, ignore_errors=True)
            os.replace(place / UNFINISHED / name, place / name)
            for old in sorted(
                place.glob("checkpoint-*"), key=lambda each: int(each.name.split("-")[1])
            )[:-2]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As a trainer's, but of a model that FSDP spreads, too, only what learns is kept, in
        `WEIGHTS`.
        """
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        try:
            state = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        except SafetensorError as error:
            raise ValueError(
                f"{resume_from_checkpoint} is damaged ({error}): delete it to go on from what was "
                "kept before"
            ) from None
        mine = {name: each for name, each in self.student.named_parameters() if each.requires_grad}
        if set(mine) != set(state):
            raise ValueError(
                f"{resume_from_checkpoint} holds other weights than these that learn: take another "
                "folder"
            )
        with torch.no_grad():
            for name, tensor in state.items():
                spread = mine[name]
                if isinstance(spread, DTensor):
                    tensor = distribute_tensor(
                        tensor.to(spread.device), spread.device_mesh, spread.placements
                    )
                spread.copy_(tensor)


class _EvaluatedFirst(TrainerCallback):
    """Measures before the first step, so that everything later can be compared with it."""

    def __init__(self, trainer: StudentTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if not state.global_step:
            self.trainer.evaluate()


def _of_heads(name: str) -> bool:
    return name.removeprefix("module.").startswith("heads.")
