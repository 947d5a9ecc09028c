"""Checks before a training run: options, packages, the output folder, space on the disk."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, Trainer
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..files import Schema, check_writable, nearest_existing, read_json
from .arguments import training_arguments
from .recipe import Recipe
from .source import Source

MANIFEST = "run.json"
"""File of the run manifest in an output folder; it is written when a run begins."""


class RunManifest(Schema):
    """Run manifest; a resume with other settings is refused.

    Attributes:
        recipe: all options of the recipe.
        model: name of the model, as given.
        data: hash of the training and evaluation examples.
    """

    recipe: dict[str, Any]
    model: str
    data: str


def check_options(recipe: Recipe, source: Source, folder: Path, report_to: str) -> None:
    """Check the options that can be checked without the model and the data.

    Raises:
        ImportError: a package is missing.
        ValueError: batch size or optimizer do not fit the devices, or an option has no effect or an
            unknown value.
    """
    for stage, epochs in recipe.stages:
        args = training_arguments(recipe, stage, epochs, folder, 1, evaluated=False)
        # transformers looks for the optimizer's package here, before the backbone is loaded.
        Trainer.get_optimizer_cls_and_kwargs(args, nn.Linear(1, 1))
    if recipe.adapts and find_spec("peft") is None:
        raise ImportError(
            "an adapter needs peft: pip install 'medusa-decoding[train]', or set lora_rank 0"
        )
    if source.evaluation is not None and recipe.evaluation_share != Recipe().evaluation_share:
        raise ValueError(
            "evaluation_share has no effect beside evaluation data: leave out one of them"
        )
    _check_reports(report_to)


def _check_reports(report_to: str) -> None:
    if report_to in ("none", "all"):
        return
    if report_to not in INTEGRATION_TO_CALLBACK:
        raise ValueError(
            f"report_to must be one of none, all, {', '.join(INTEGRATION_TO_CALLBACK)}, got "
            f"{report_to}"
        )
    if report_to not in get_available_reporting_integrations():
        raise ImportError(
            f"report_to {report_to} needs its package: pip install {report_to.replace('_', '-')}"
        )


def check_merge(merge: bool, recipe: Recipe, config: PreTrainedConfig) -> None:
    """Check that `merge` is possible: the recipe trains a backbone that is not quantised.

    Raises:
        ValueError: `merge` is set, and the backbone is frozen or quantised.
    """
    if merge and not recipe.backbone_learns:
        raise ValueError(
            "merge is for a backbone that learns, and method medusa-1 changes none: leave it out"
        )
    if merge and getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            "the base model is quantised, so an adapter cannot be merged into it: leave out --merge"
        )


def check_output(folder: Path, option: str) -> None:
    """Check that an output folder can be written.

    Args:
        folder: the folder, which need not exist.
        option: command line option that sets it, for the message.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        check_writable(folder, folder=True)
    except OSError as error:
        raise ValueError(f"{error}: take another {option}") from None


def check_folder(folder: Path, manifest: dict[str, Any]) -> None:
    """Check that an output folder is empty, or holds an earlier part of the same run.

    Args:
        folder: output folder.
        manifest: fields of the run manifest that are known so far.

    Raises:
        ValueError: the folder holds another run or other files, or its manifest is damaged.
    """
    if (folder / MANIFEST).is_file():
        existing = _read_manifest(folder).model_dump()
        different = [
            name
            for name, value in manifest["recipe"].items()
            if existing["recipe"].get(name) != value
        ]
        different += [
            name for name in manifest if name != "recipe" and existing[name] != manifest[name]
        ]
        if different:
            raise ValueError(
                f"{folder} holds a run with other {', '.join(different)}: take another --output, "
                "or delete it"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something else: take another --output")


def _read_manifest(folder: Path) -> RunManifest:
    try:
        return read_json(folder / MANIFEST, RunManifest)
    except ValueError as error:
        raise ValueError(
            f"{error}. This file holds the settings of the run in {folder}: take another --output, "
            "or delete the folder"
        ) from None


def check_disk(needs: dict[str, tuple[Path, int]]) -> None:
    """Check that the files of a run fit on the disks.

    Args:
        needs: folder and number of bytes of each kind of file.

    Raises:
        ValueError: they do not fit; the message says what needs how much.
    """
    disks: dict[int, list[str]] = {}
    for name, (folder, _) in needs.items():
        disks.setdefault(nearest_existing(folder).stat().st_dev, []).append(name)
    for names in disks.values():
        place = nearest_existing(needs[names[0]][0])
        free, needed = shutil.disk_usage(place).free, sum(needs[name][1] for name in names)
        if needed > free:
            parts = ", ".join(f"{name} {needs[name][1] / 1e9:.2f} GB" for name in names)
            raise ValueError(
                f"this run writes about {needed / 1e9:.2f} GB ({parts}), and {free / 1e9:.2f} GB "
                f"are free at {place}: free some, or write elsewhere (--output, --hidden-states)"
            )
