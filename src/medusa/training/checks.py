"""Checks before the work: output folders, packages, room on the disk."""

from __future__ import annotations

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..files import Schema, read_json
from .arguments import arguments
from .recipe import Recipe
from .source import Source

RUN = "run.json"
"""Manifest of the run in a folder; written when the run begins."""


class Run(Schema):
    """The manifest of a run, which tells it from another."""

    recipe: dict[str, Any]
    model: str
    data: str


def check_options(recipe: Recipe, source: Source, folder: Path, report_to: str) -> None:
    """Check what needs neither model nor data.

    Raises:
        ImportError: a package is missing.
        ValueError: batch size or optimizer do not fit the devices, or an option has no effect or an
            unknown value.
    """
    for stage, epochs in recipe.stages:
        made = arguments(recipe, stage, epochs, folder, 1, evaluated=False)
        _check_optimizer(made)
    if recipe.adapts and find_spec("peft") is None:
        raise ImportError(
            "an adapter needs peft: pip install 'medusa-decoding[train]', or set lora_rank 0"
        )
    if source.evaluation is not None and recipe.evaluation_share != Recipe().evaluation_share:
        raise ValueError(
            "evaluation_share has no effect beside evaluation data: leave out one of them"
        )
    _check_reports(report_to)


def _check_optimizer(made: TrainingArguments) -> None:
    """Have transformers look for the optimizer now, not after the backbone is loaded."""
    Trainer.get_optimizer_cls_and_kwargs(made, nn.Linear(1, 1))


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
    """Raises ValueError where no backbone can be written whole."""
    if merge and not recipe.backbone_learns:
        raise ValueError(
            "merge is for a backbone that learns, and method medusa-1 changes none: leave it out"
        )
    if merge and getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            "the base model is quantised, so an adapter cannot be merged into it: leave out --merge"
        )


def check_folder(folder: Path, run: dict[str, Any]) -> None:
    """Check that the folder is free for this run, or is this run's, as far as that is known.

    Raises:
        ValueError: it is not.
    """
    if (folder / RUN).is_file():
        there = _read_run(folder).model_dump()
        other = [
            name for name, value in run["recipe"].items() if there["recipe"].get(name) != value
        ]
        other += [name for name in run if name != "recipe" and there[name] != run[name]]
        if other:
            raise ValueError(
                f"{folder} holds a run with other {', '.join(other)}: take another --output, or "
                "delete it"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something else: take another --output")


def _read_run(folder: Path) -> Run:
    try:
        return read_json(folder / RUN, Run)
    except ValueError as error:
        raise ValueError(
            f"{error}. It says what the run in {folder} is of: take another --output, or delete "
            "the folder"
        ) from None


def check_writable(folder: Path, option: str) -> None:
    """Check that files can be made in a folder, or in the folder that it will be made in.

    Raises:
        ValueError: they cannot; names the option that chose the folder.
    """
    place = _existing(folder)
    if place == folder.absolute() and not place.is_dir():
        raise ValueError(f"{folder} is a file: take another {option}")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written to ({error.strerror}): take another {option}"
        ) from None


def check_disk(needs: dict[str, tuple[Path, int]]) -> None:
    """Check that what a run will write fits on the disks that it writes to.

    Args:
        needs: what is written, where, and how many bytes of it.

    Raises:
        ValueError: it does not fit; says what takes how much.
    """
    disks: dict[int, list[str]] = {}
    for name, (folder, _) in needs.items():
        disks.setdefault(_existing(folder).stat().st_dev, []).append(name)
    for names in disks.values():
        place = _existing(needs[names[0]][0])
        free, asked = shutil.disk_usage(place).free, sum(needs[name][1] for name in names)
        if asked > free:
            parts = ", ".join(f"{name} {needs[name][1] / 1e9:.2f} GB" for name in names)
            raise ValueError(
                f"this run writes about {asked / 1e9:.2f} GB ({parts}), and {free / 1e9:.2f} GB "
                f"are free at {place}: "
                "free some, or write elsewhere (--output, --hidden-states)"
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
