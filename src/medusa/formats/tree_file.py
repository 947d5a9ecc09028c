"""The tree file `medusa_tree.json`: a candidate tree and its calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator

from ..core.schedule import UNCALIBRATED, Calibration
from ..core.tree import CandidateTree
from ..files import Schema, read_json, write_json

Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]
Shares = Annotated[list[Share], Field(min_length=1)]


class CalibrationMetadata(Schema):
    """Metadata of a calibration; fields that are not named here are kept without validation."""

    model_config = ConfigDict(extra="allow")

    device: str | None = None
    dtype: str | None = None
    frequencies: list[Share] | None = None


class TreeFile(Schema):
    """The content of a tree file.

    Attributes:
        version: version of the format.
        paths: rank path of each node except the root.
        accuracies: cumulative accuracies; row k has, for head k + 1, the share of positions at
            which the correct token is among its 1, 2, ... most probable ones.
        latency: milliseconds of a decoding step, by number of nodes.
        made: where and how the tree was calibrated.
    """

    version: Annotated[int, Field(ge=1, le=1)] = 1
    paths: list[list[int]]
    accuracies: Annotated[list[Shares], Field(min_length=1)] | None = None
    latency: dict[Annotated[int, Field(ge=1)], Annotated[float, Field(gt=0)]] | None = None
    made: CalibrationMetadata = CalibrationMetadata()

    @field_validator("paths")
    @classmethod
    def _check_paths(cls, paths: list[list[int]]) -> list[list[int]]:
        CandidateTree(paths)  # raises ValueError if the paths do not form a tree
        return paths

    @field_validator("accuracies")
    @classmethod
    def _check_accuracies(cls, accuracies: list[list[float]] | None) -> list[list[float]] | None:
        CandidateTree().probabilities(accuracies or [])  # raises ValueError if a row decreases
        return accuracies

    @field_validator("latency")
    @classmethod
    def _check_latency(cls, latency: dict[int, float] | None) -> dict[int, float] | None:
        if latency is not None and 1 not in latency:
            raise ValueError('the time of one node, "1", is missing')
        return latency


def read_tree(file: Path) -> tuple[CandidateTree, Calibration]:
    """Return the tree and the calibration of a tree file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a tree file. The message names the file and the fields.
    """
    content = read_json(file, TreeFile)
    tree = CandidateTree(content.paths)
    if content.accuracies is None:
        return tree, UNCALIBRATED
    latency = UNCALIBRATED.latency if content.latency is None else content.latency
    metadata = content.made.model_dump(exclude_unset=True)
    return tree, Calibration(content.accuracies, latency, metadata)


def write_tree(file: Path, tree: CandidateTree, calibration: Calibration = UNCALIBRATED) -> None:
    """Write a tree, without its root, and its calibration."""
    content: dict[str, Any] = {"version": 1, "paths": [list(path) for path in tree.paths[1:]]}
    if calibration is not UNCALIBRATED:
        content["accuracies"] = [list(row) for row in calibration.accuracies]
    if calibration.made:
        content["latency"] = {str(nodes): ms for nodes, ms in calibration.latency.items()}
        content["made"] = dict(calibration.made)
    write_json(file, content)
