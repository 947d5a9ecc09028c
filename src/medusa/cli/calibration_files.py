"""The files that `medusa calibrate` writes: tree, report and figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import files
from ..calibration.drawing import check_library, draw_tree, save
from ..calibration.figures import draw_accuracies, draw_trees, replayed, trees
from ..calibration.report import Report
from ..calibration.search import likelihoods
from ..formats import names, native
from ..formats.stored import StoredHeads
from ..loading import MedusaModel
from .calibrate import CalibrationOutputs
from .models import folder_or_id
from .options import ModelOptions
from .streams import note


@dataclass(frozen=True)
class ResultFiles:
    """The files and folders of the results.

    Attributes:
        folder: folder of the heads and the tree.
        json_file: file of the whole report; None if it is not wanted.
        figures: folder of plots; None if they are not wanted.
        resume: folder of finished batches; None if they are not kept.
    """

    folder: Path
    json_file: Path | None
    figures: Path | None
    resume: Path | None

    @classmethod
    def of(cls, outputs: CalibrationOutputs, model: ModelOptions) -> ResultFiles:
        """Return the files that the options name.

        Raises:
            ValueError: the model has no heads, no folder is named for heads that are not in a
                folder of the user's, or the folder named holds other heads.
        """
        folder = _tree_folder(model.model, outputs.output, model.revision)
        return cls(folder, outputs.json, outputs.figures, outputs.resume)

    def check(self) -> None:
        """Check that all results can be written, before hours of work depend on it.

        Raises:
            ImportError: figures are wanted, and matplotlib is missing or does not work.
            OSError: a file or folder cannot be written; names it.
        """
        if self.figures is not None:
            check_library()
        written = [self.folder / names.TREE, self.json_file]
        in_folders = [
            None if folder is None else folder / "tree.png"
            for folder in (self.figures, self.resume)
        ]
        for file in (*written, *in_folders):
            if file is not None:
                files.check_writable(file)

    def write(self, model: MedusaModel, report: Report) -> None:
        """Write the tree, then the report and the figures, even if one of these two fails.

        Raises:
            ValueError: the report or the figures could not be written; says why, and that the tree
                is stored.
        """
        _write_tree(model, report, self.folder)
        note(f"tree written to {self.folder / names.TREE}")
        failures = []
        for name, place, write in (
            ("report", self.json_file, write_report),
            ("figures", self.figures, draw),
        ):
            if place is not None:
                try:
                    write(report, place)
                    note(f"{name} written to {place}")
                except Exception as error:  # matplotlib raises errors of many types
                    failures.append(
                        f"the {name} could not be written to {place}: "
                        f"{error or type(error).__name__}"
                    )
        if failures:
            raise ValueError(f"the tree is stored in {self.folder}, but {'; '.join(failures)}")


def write_report(report: Report, file: Path) -> None:
    """Write the whole report as JSON."""
    files.write_json(file, report.to_json(), indent=1)


def draw(report: Report, folder: Path) -> None:
    """Draw `accuracy.png`, `trees.png` (as figure 4 of the paper) and `tree.png` (as figure 6).

    The points of `trees.png` are computed from the recording, not decoded anew.
    """
    points = replayed(
        report.recording, report.latency, trees(report.recording, report.settings.max_nodes)
    )
    metadata = report.metadata
    title = f"{metadata['device']}, {metadata['dtype']}, batch size {metadata['batch_size']}"
    save(draw_accuracies(report), folder / "accuracy.png")
    save(draw_trees(points, title), folder / "trees.png")
    save(draw_tree(report.tree, likelihoods(report.recording, report.tree)), folder / "tree.png")


def _tree_folder(name: str, output: Path | None, revision: str | None) -> Path:
    """Return the folder for the tree: `output`, by default that of the heads.

    Raises:
        ValueError: see `ResultFiles.of`.
    """
    model = folder_or_id(name)
    heads = names.find_heads(model, revision=revision)
    if heads is None:
        raise ValueError(f"{name} has no Medusa heads: there is nothing to calibrate")
    if output is None and not Path(model).expanduser().is_dir():
        raise ValueError(
            f"{name} comes from the hub: say with --output FOLDER where heads and tree should go"
        )
    if output is None:
        return heads
    there = StoredHeads.find(output)
    if there is not None and not there.equals(StoredHeads.of(heads)):
        raise ValueError(
            f"{output} holds other heads than {name}, which its tree would not fit: name another "
            "--output"
        )
    return output


def _write_tree(model: MedusaModel, report: Report, folder: Path) -> None:
    """Write the tree file; in a folder without heads, write the heads as well."""
    if StoredHeads.find(folder) is not None:
        native.write_tree(folder, report.tree, report.calibration)
    else:
        model.tree, model.calibration = report.tree, report.calibration
        model.save_pretrained(folder)
