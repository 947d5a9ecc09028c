"""What a run leaves: heads with a tree, the backbone where it changed, and a report."""

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
from .learner import Learner
from .lora import save_adapter
from .recipe import Recipe
from .source import Source
from .trainer import TOP

NODES = 16
"""Of the tree that is stored with new accuracies; `medusa calibrate` finds the one that fits a
machine.
"""
REPORT = "training.json"
"""What came of a run; written last."""


def is_saved(folder: Path, merge: bool) -> bool:
    """Whether `save` has been here, to the end; an adapter may still be merged."""
    return (folder / REPORT).is_file() and (not merge or (folder / names.MERGED).is_dir())


def save(
    folder: Path,
    source: Source,
    recipe: Recipe,
    learner: Learner,
    learnt: dict[str, Tensor],
    metrics: dict[str, float],
    merge: bool,
) -> str:
    """Write the native folder and the report; returns what was written, in words.

    Args:
        learnt: the parameters that learnt, by their names in the student.
        metrics: of the last evaluation; empty where nothing was held out.
        merge: write a changed backbone whole, not as an adapter.
    """
    heads = MedusaHeads(learner.student.heads.config)
    heads.load_state_dict(
        _under("heads.", learnt) or learner.student.heads.cpu().state_dict(), strict=False
    )
    dtype = learner.student.base.dtype
    heads = heads.to(dtype if dtype.is_floating_point else torch.float32)
    tree, calibration = _judged(metrics, heads.config.num_heads)
    changed = _under("base.", learnt)
    with storage.saving(folder, heads, last=(REPORT,)) as new:
        base, revision, written = source.origin.seen_from(folder), source.origin.revision, "heads"
        if changed and learner.adapter is not None:
            save_adapter(learner.adapter, changed, new / names.ADAPTER)
            written = "heads and adapter"
        if changed and (merge or learner.adapter is None):
            _save_backbone(new, source, changed)
            base, revision, written = names.MERGED, None, "heads and backbone"
        storage.write_heads(new, heads, tree, base, calibration, revision)
        write_json(
            new / REPORT, {"recipe": recipe.to_json(), "metrics": metrics, **provenance()}, indent=1
        )
    if base == names.MERGED:
        shutil.rmtree(folder / names.ADAPTER, ignore_errors=True)  # of a run that is merged now
    return written


def _save_backbone(folder: Path, source: Source, changed: dict[str, Tensor]) -> None:
    """Write the base model with what changed of it, or with the adapter that lies in the folder,
    which it replaces.
    """
    whole, adapter = source.load_base(dtype="auto"), folder / names.ADAPTER
    if adapter.is_dir():
        whole = adapters.apply(whole, adapter)
        shutil.rmtree(adapter)
    else:
        whole.load_state_dict(changed, strict=False)
    whole.save_pretrained(folder / names.MERGED)
    source.tokenizer().save_pretrained(folder / names.MERGED)


def _judged(metrics: dict[str, float], num_heads: int) -> tuple[CandidateTree, Calibration]:
    """The tree that suits the heads' accuracies, and these; without metrics the usual tree."""
    if not metrics:
        return CandidateTree.default(num_heads, NODES), UNCALIBRATED
    accuracies = [
        [metrics[f"eval_head_{head}_top_{rank}"] for rank in range(1, TOP + 1)]
        for head in range(1, num_heads + 1)
    ]
    calibration = dataclasses.replace(UNCALIBRATED, accuracies=accuracies)
    return CandidateTree.from_accuracies(accuracies, NODES), calibration


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
