"""`CheckpointTrainer`: transformers' `Trainer` with checkpoints of only the weights it trains.

The frozen weights are in the base model's own files. Checkpoints also work for models that FSDP or
DeepSpeed shard over several devices.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer

from .training_model import TrainingModel

SCHEDULER = "scheduler.pt"
"""File of the learning rate scheduler in a checkpoint; transformers reads it by this name."""
WEIGHTS = "learnt.safetensors"
"""File of the trained weights in a checkpoint."""
UNFINISHED = "unfinished"
"""Folder in which a checkpoint is written before it is renamed."""
KEPT_CHECKPOINTS = 2


class CheckpointTrainer(Trainer):
    """A trainer of a `TrainingModel` whose checkpoints hold the optimizer and the trained weights.

    A checkpoint is written to another folder and then renamed, so a checkpoint that exists is
    complete. The last two are kept.
    """

    @property
    def training_model(self) -> TrainingModel:
        """The model without the wrappers of accelerate, FSDP or DeepSpeed."""
        unwrapped: TrainingModel = self.accelerator.unwrap_model(self.model)
        return unwrapped

    def trained_weights(self) -> dict[str, Tensor]:
        """Return the trained weights, unsharded, on the CPU; empty in processes that do not save.

        All processes must call this together, because gathering shards involves all of them.
        """
        trainable = {
            name: parameter.detach()
            for name, parameter in self.training_model.named_parameters()
            if parameter.requires_grad
        }
        if self.is_deepspeed_enabled and self.model_wrapped is not self.model:
            state = self.accelerator.get_state_dict(self.model_wrapped) or {}
            trainable = {name: state[name] for name in trainable if name in state}
        weights = {}
        for name, tensor in trainable.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.args.should_save:
                weights[name] = whole.to("cpu", copy=True).contiguous()
        return weights

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the trained weights."""
        weights = self.trained_weights()
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / WEIGHTS)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        self.args.output_dir = str(folder / UNFINISHED)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            shutil.rmtree(folder / name, ignore_errors=True)
            os.replace(folder / UNFINISHED / name, folder / name)
            checkpoints = sorted(
                folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
            )
            for old in checkpoints[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # transformers would also save the whole model here; `WEIGHTS` has what is needed of it.
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
        trainable = {
            name: parameter
            for name, parameter in self.training_model.named_parameters()
            if parameter.requires_grad
        }
        if set(trainable) != set(state):
            raise ValueError(
                f"{resume_from_checkpoint} holds other weights than those that this run trains: "
                "take another folder"
            )
        with torch.no_grad():
            for name, tensor in state.items():
                parameter = trainable[name]
                if isinstance(parameter, DTensor):
                    tensor = distribute_tensor(
                        tensor.to(parameter.device), parameter.device_mesh, parameter.placements
                    )
                parameter.copy_(tensor)
