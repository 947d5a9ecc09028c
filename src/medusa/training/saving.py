"""Saving of a training run: heads with a tree, the trained backbone, and a report."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch
from torch import Tensor

from ..core.heads import MedusaHeads
from ..core.schedule import UNCALIBRATED, Calibration
from ..core.tree import CandidateTree
from ..files import write_json
from ..formats import adapters, names
from ..formats import native as storage
from ..hardware.provenance import provenance
from .lora import save_adapter
from .metrics import TOP
from .recipe import Recipe
from .source import Source
from .staged_model import StagedModel

NODES = 16
"""Size of the tree that is saved with the heads, until `medusa calibrate` finds the best size."""


def is_saved(folder: Path, merge: bool) -> bool:
    """Return True if `save` has completed; with `merge`, also the merged model must exist."""
    return (folder / names.REPORT).is_file() and (not merge or (folder / names.MERGED).is_dir())


def save(
    folder: Path,
    source: Source,
    recipe: Recipe,
    staged: StagedModel,
    weights: dict[str, Tensor],
    metrics: dict[str, float],
    merge: bool,
) -> str:
    """Write the heads, the trained backbone and the report; return what was written, in words.

    Args:
        folder: output folder.
        source: model and data of the run.
        recipe: recipe of the run.
        staged: the model, for its configuration and its adapter.
        weights: trained weights by their names in the training model.
        metrics: metrics of the last evaluation; empty if there was none.
        merge: write a trained backbone as a whole model, not as an adapter.
    """
    dtype = staged.model.base.dtype
    heads = _trained_heads(staged, weights).to(dtype if dtype.is_floating_point else torch.float32)
    tree, calibration = _tree_of(metrics, heads.config.num_heads)
    backbone = _with_prefix("base.", weights)
    with storage.saving(folder, heads.config.num_heads, last=(names.REPORT,)) as new:
        base, revision, written = source.origin.seen_from(folder), source.origin.revision, "heads"
        if backbone and staged.peft_model is not None:
            save_adapter(staged.peft_model, backbone, new / names.ADAPTER)
            written = "heads and adapter"
        if backbone and (merge or staged.peft_model is None):
            _save_backbone(new, source, backbone)
            base, revision, written = names.MERGED, None, "heads and backbone"
        storage.write_heads(new, heads, tree, base, calibration, revision)
        report = {"recipe": recipe.to_json(), "metrics": metrics, **provenance()}
        write_json(new / names.REPORT, report, indent=1)
    if base == names.MERGED:
        # An earlier run of this folder may have saved the adapter that is merged now.
        shutil.rmtree(folder / names.ADAPTER, ignore_errors=True)
    return written


def _trained_heads(staged: StagedModel, weights: dict[str, Tensor]) -> MedusaHeads:
    """Return the heads with their trained weights, or unchanged if they were not trained."""
    heads = MedusaHeads(staged.model.heads.config)
    state = _with_prefix("heads.", weights) or staged.model.heads.cpu().state_dict()
    heads.load_state_dict(state, strict=False)
    heads.restrict(staged.model.heads.token_map)
    return heads


def _save_backbone(folder: Path, source: Source, weights: dict[str, Tensor]) -> None:
    """Write the base model with its trained weights, or with the adapter in `folder` merged.

    The adapter is deleted after it is merged.
    """
    model, adapter = source.load_base(dtype="auto"), folder / names.ADAPTER
    if adapter.is_dir():
        model = adapters.apply(model, adapter)
        shutil.rmtree(adapter)
    else:
        model.load_state_dict(weights, strict=False)
    model.save_pretrained(folder / names.MERGED)
    source.tokenizer().save_pretrained(folder / names.MERGED)


def _tree_of(metrics: dict[str, float], num_heads: int) -> tuple[CandidateTree, Calibration]:
    """Return the best tree for the heads' accuracies, and these; the default without metrics."""
    if not metrics:
        return CandidateTree.default(num_heads, NODES), UNCALIBRATED
    accuracies = [
        [metrics[f"eval_head_{head}_top_{rank}"] for rank in range(1, TOP + 1)]
        for head in range(1, num_heads + 1)
    ]
    calibration = dataclasses.replace(UNCALIBRATED, accuracies=accuracies)
    return CandidateTree.from_accuracies(accuracies, NODES), calibration


def _with_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without the prefix."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
