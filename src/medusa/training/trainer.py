"""transformers' `Trainer` for a `Student`: averages exact over devices, whole checkpoints, measures of heads."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import get_last_checkpoint

from ..tree import CandidateTree
from .arguments import arguments
from .losses import token_counts
from .muon import Muon, matrices
from .recipe import MUON, Recipe, Stage
from .student import Student

SCHEDULER = "scheduler.pt"
"""Of a checkpoint: the learning rate's place, by the name that transformers gives it."""
WEIGHTS = "learnt.safetensors"
"""Of a checkpoint: what learns, and nothing else."""
UNFINISHED = "unfinished"
"""Where a checkpoint is written before it takes its place."""
END, METRICS = "end", "metrics.json"
"""What learnt by the end, and what the last evaluation told; the second is written last."""
TOP = 5
"""Ranks that evaluations count."""


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
        perplexity: the backbone's before anything was trained; by default what the first evaluation says.
        say: told every line of the log; None keeps it quiet.

    Raises:
        ValueError: DeepSpeed ZeRO-3 is to spread a backbone that learns, or a device map spreads it.
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
        if is_deepspeed_zero3_enabled() and student.backbone_learns:  # known once there are arguments
            raise ValueError(
                "DeepSpeed ZeRO-3 spreads a backbone that is frozen: train the heads alone (method medusa-1), "
                "or spread the model by FSDP2 (configs/fsdp2.yaml)"
            )
        if len(set(getattr(student.base, "hf_device_map", {"": 0}).values())) > 1:
            raise ValueError(
                "the base model is spread by device_map, which trains nothing here: leave it out, "
                "and spread the model by FSDP2 (configs/fsdp2.yaml)"
            )
        self.recipe, self.stage, self.tree = recipe, stage, tree
        self.evaluation, self.perplexity = evaluation, perplexity
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
            self.add_callback(_Lines(say))
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
        """`go`, unless that has ended before, and keep what it came to; returns the metrics of its last evaluation."""
        end = Path(self.args.output_dir) / END
        ended = (end / METRICS).is_file()
        self.accelerator.wait_for_everyone()
        if ended:
            self._load_from_checkpoint(str(end))
            told: dict[str, float] = json.loads((end / METRICS).read_text())
            return told
        self.go()
        metrics = self.last_evaluation()
        self.save_model(str(end))
        if self.args.should_save:
            (end / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
        return metrics

    # --- losses

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """[1 + K] tokens that backbone and heads learn from in a step, over its micro-batches and all devices."""
        heads = self.student.heads.config.num_heads
        counts = torch.stack([token_counts(batch, heads) for batch in batch_samples]).sum(0).to(device)
        gathered: Tensor = self.accelerator.gather(counts[None])
        return gathered.sum(0)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
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
            weight *= math.sin(math.pi / 2 * (self.state.global_step + 1) / max(1, self.state.max_steps))
        return weight

    def _stop(self, parts: Tensor, rows: Tensor | None) -> None:
        names = ["the backbone", *(f"head {number}" for number in range(1, len(parts)))]
        wrong = [name for name, part in zip(names, parts.tolist(), strict=True) if not math.isfinite(part)]
        batch = "" if rows is None else f", in the batch of examples {', '.join(map(str, rows.tolist()))}"
        raise NotFiniteError(
            f"step {self.state.global_step + 1}: the loss of {', '.join(wrong) or 'the sum'} is not finite{batch}. "
            f"{self._last_good()} Lower lr, or look at these examples"
        )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not math.isfinite(float(norm)):
            raise NotFiniteError(f"step {self.state.global_step + 1}: gradients are not finite. {self._last_good()}")
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
            logs |= {f"loss_{name}": value for name, value in zip(names, means.tolist(), strict=True) if name in shown}
            self._parts = []
        super().log(logs, start_time)

    # --- optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Heads and backbone with a learning rate each (section 2.2.2)."""
        made: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        if made is None:
            named = [(n, p) for n, p in (model or self.model).named_parameters() if p.requires_grad]
            rate = self.recipe.lr
            factor = self.recipe.heads_factor(self.stage)
            groups: list[dict[str, Any]] = [
                {"params": [p for n, p in named if not _of_heads(n)], "lr": rate},
                {"params": [p for n, p in named if _of_heads(n)], "lr": rate * factor},
            ]
            if "bnb" in self.args.optim and any(parameter.numel() >= 2**31 for _, parameter in named):
                warnings.warn("a weight has more elements than bitsandbytes can count: AdamW in 32 bits", stacklevel=2)
                self.args.optim = "adamw_torch"
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.student.base)
            inside = matrices(self.student.base) if self.recipe.optimizer == MUON else set()
            by_muon = [p for p in groups[0]["params"] if p in inside]
            groups[0]["params"] = [p for p in groups[0]["params"] if p not in inside]
            made = kind([group for group in groups if group["params"]], **settings)
            if by_muon:
                made = Muon(by_muon, made, rate, self.recipe.weight_decay)
        self.optimizer = made
        return made

    # --- evaluation

    @torch.no_grad()
    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Loss and top-1 to top-5 accuracy of every head, the backbone's perplexity, the tree's expected rate.

        Every process measures all of the data, so that all models that are spread over processes can.
        """
        model = self.model_wrapped if self.model_wrapped is not None else self.model
        training = model.training
        model.eval()
        heads = self.student.heads.config.num_heads
        sums, hits, counts = torch.zeros(1 + heads), torch.zeros(heads, TOP), torch.zeros(1 + heads)
        size = self.args.per_device_eval_batch_size
        for begin in range(0, len(self.evaluation), size):
            rows = [self.evaluation[place] for place in range(begin, min(begin + size, len(self.evaluation)))]
            batch = self._prepare_inputs(self.data_collator(rows))
            batch.pop("rows", None)
            with self.accelerator.autocast():
                told = model(**batch, top=TOP)
            sums, hits, counts = sums + told["sums"].cpu(), hits + told["hits"].cpu(), counts + told["counts"].cpu()
        model.train(training)
        metrics = self._metrics(sums / counts.clamp_min(1), hits / counts[1:, None].clamp_min(1), metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, getattr(self, "control"), metrics)  # noqa: B009
        return metrics

    def last_evaluation(self) -> dict[str, float]:
        """`evaluate`'s metrics after the last step, measured now if they were not then; empty without data."""
        for line in reversed(self.state.log_history):
            if "eval_perplexity" in line and line["step"] == self.state.global_step:
                return {name: value for name, value in line.items() if name.startswith("eval_")}
        return self.evaluate() if self.evaluation else {}

    def _metrics(self, losses: Tensor, accuracy: Tensor, prefix: str) -> dict[str, float]:
        told = {"perplexity": math.exp(min(50.0, float(losses[0])))}
        first = (each[f"{prefix}_perplexity"] for each in self.state.log_history if f"{prefix}_perplexity" in each)
        self.perplexity = self.perplexity or next(first, told["perplexity"])
        told["perplexity_change"] = told["perplexity"] - self.perplexity
        for head in range(len(accuracy)):
            told[f"loss_head_{head + 1}"] = float(losses[head + 1])
            told |= {f"head_{head + 1}_top_{rank + 1}": float(accuracy[head, rank]) for rank in range(TOP)}
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
        learning = {name: each.detach() for name, each in self.student.named_parameters() if each.requires_grad}
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
            for old in sorted(place.glob("checkpoint-*"), key=lambda each: int(each.name.split("-")[1]))[:-2]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As a trainer's, but of a model that FSDP spreads, too, only what learns is kept, in `WEIGHTS`."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        state = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        mine = {name: each for name, each in self.student.named_parameters() if each.requires_grad}
        if set(mine) != set(state):
            raise ValueError(f"{resume_from_checkpoint} holds other weights than these that learn: take another folder")
        with torch.no_grad():
            for name, tensor in state.items():
                spread = mine[name]
                if isinstance(spread, DTensor):
                    tensor = distribute_tensor(tensor.to(spread.device), spread.device_mesh, spread.placements)
                spread.copy_(tensor)


class _Lines(TrainerCallback):
    """The log in a line each."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.begun, self.first = time.monotonic(), state.global_step
        if self.first and state.is_world_process_zero:
            self.say(f"going on from step {self.first}")

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        logs = logs or {}
        heads = [logs[name] for name in logs if name.startswith("loss_head_")]
        shown = " ".join(f"{value:.3f}" for value in heads)
        if "loss" in logs and state.is_world_process_zero:
            backbone = f"  backbone {logs['loss_backbone']:.3f}" if "loss_backbone" in logs else ""
            pace = (time.monotonic() - self.begun) / max(1, state.global_step - self.first)
            left = timedelta(seconds=round(pace * (state.max_steps - state.global_step)))
            self.say(
                f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}{backbone}  heads {shown}"
                f"  lr {logs['learning_rate']:.1e}  {left} left"
            )
        elif "eval_perplexity" in logs and state.is_world_process_zero:
            top = [f"{value:.1%}" for name, value in logs.items() if name.endswith("_top_1")]
            self.say(
                f"step {state.global_step}, evaluation: heads right {', '.join(top)}; "
                f"perplexity {logs['eval_perplexity']:.3f} ({logs['eval_perplexity_change']:+.3f}); "
                f"{logs['eval_acceleration_rate']:.2f} tokens a step expected"
            )


class _EvaluatedFirst(TrainerCallback):
    """Measures before the first step, so that everything later can be compared with it."""

    def __init__(self, trainer: StudentTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if not state.global_step:
            self.trainer.evaluate()


def _of_heads(name: str) -> bool:
    return name.removeprefix("module.").startswith("heads.")
