"""`medusa calibrate`: find the candidate tree that decodes fastest on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .options import LARGEST_LENGTH, DecodingOptions, ModelOptions
from .parameters import option

if TYPE_CHECKING:
    from ..calibration.settings import CalibrationSettings


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Options that name the prompts and say what the tree is calibrated for."""

    data: str | None = option(
        "Prompts like those that the model will serve: .txt (one per line), .jsonl, .json, or a "
        "dataset on the hub; required unless MODEL is 'demo'",
        default=None,
        metavar="FILE|DATASET",
    )
    prompts: int = option(
        "Maximum number of prompts; every fifth is held out to test the tree",
        default=150,
        min=2,
        max=5000,
    )
    max_nodes: int = option("Maximum number of nodes in the tree", default=64, min=1, max=1024)
    heads: int | None = option(
        "Number of heads that the tree may use; by default all", default=None, min=1
    )
    batch_size: int = option(
        "Number of rows decoded at once, as the model will serve", default=1, min=1, max=4096
    )
    context: list[int] | None = option(
        "Number of tokens in the context when steps are timed; may be repeated",
        default=None,
        min=1,
        max=LARGEST_LENGTH,
        show_default="quartiles of the context lengths of the recorded answers",
    )
    rounds: int = option(
        "Number of times that a step of each size is timed in each context",
        default=20,
        min=3,
        max=100_000,
    )

    def settings(self, compiled: bool | None) -> CalibrationSettings:
        """Return the settings of the library's `calibrate`."""
        from ..calibration.settings import CalibrationSettings

        contexts = tuple(self.context) if self.context else None
        return CalibrationSettings(
            self.max_nodes,
            self.heads,
            contexts,
            self.batch_size,
            self.rounds,
            compiled=compiled,
        )


@dataclass(frozen=True, kw_only=True)
class CalibrationOutputs:
    """Options that name the files and folders of the results."""

    output: Path | None = option(
        "Folder for a copy of the heads with the tree; by default the tree is stored beside the "
        "heads",
        default=None,
        metavar="FOLDER",
    )
    json: Path | None = option(
        "File for the whole report, as JSON; by default none", default=None, metavar="FILE"
    )
    figures: Path | None = option(
        "Folder for plots of accuracies and trees (needs matplotlib); by default none",
        default=None,
        metavar="FOLDER",
    )
    resume: Path | None = option(
        "Folder that keeps finished batches, so that the same command resumes an interrupted "
        "run; by default none",
        default=None,
        metavar="FOLDER",
    )


def calibrate(
    options: CalibrationOptions,
    outputs: CalibrationOutputs,
    decoding: DecodingOptions,
    model: ModelOptions,
) -> None:
    """Find the tree that decodes these prompts fastest here, and store it beside the heads."""
    from . import calibration_tables
    from .calibration_files import ResultFiles
    from .calibration_prompts import read_messages, split
    from .models import load
    from .streams import console

    results = ResultFiles.of(outputs, model)
    messages = read_messages(options, model.model)
    results.check()
    medusa, tokenizer = load(model, all_heads=True)

    import torch

    from ..calibration.calibrate import calibrate as find_tree
    from ..training.progress import progress

    torch.manual_seed(0)
    report = find_tree(
        medusa,
        *split(tokenizer, messages),
        # The tokenizer is for the model's own stop strings.
        {**decoding.arguments(), "within_positions": True, "tokenizer": tokenizer},
        options.settings(model.compile),
        acceptance=decoding.acceptance,
        work=outputs.resume,
        progress=progress,
    )
    try:
        results.write(medusa, report)
    finally:
        calibration_tables.show(console(), report)
