"""The tree file: a candidate tree and what was measured for it, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator

from ..core.schedule import UNCALIBRATED, Calibration
from ..core.tree import CandidateTree
from ..files import Schema, read_json, write_json

Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]
Shares = Annotated[list[Share], Field(min_length=1)]


class Made(Schema):
    """Where and how a calibration was made. Only the fields that are read are checked."""

    model_config = ConfigDict(extra="allow")

    device: str | None = None
    dtype: str | None = None
    frequencies: list[Share] | None = None


class TreeFile(Schema):
    """The content of a tree file."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    paths: list[list[int]]
    accuracies: Annotated[list[Shares], Field(min_length=1)] | None = None
    latency: dict[Annotated[int, Field(ge=1)], Annotated[float, Field(gt=0)]] | None = None
    made: Made = Made()

    @field_validator("paths")
    @classmethod
    def _form_a_tree(cls, paths: list[list[int]]) -> list[list[int]]:
        CandidateTree(paths)
        return paths

    @field_validator("accuracies")
    @classmethod
    def _rise(cls, accuracies: list[list[float]] | None) -> list[list[float]] | None:
        CandidateTree().probabilities(accuracies or [])
        return accuracies

    @field_validator("latency")
    @classmethod
    def _has_plain_decoding(cls, latency: dict[int, float] | None) -> dict[int, float] | None:
        if latency is not None and 1 not in latency:
            raise ValueError('the time of one node, "1", is missing')
        return latency


def read_tree(file: Path) -> tuple[CandidateTree, Calibration]:
    """Return a file's tree and what was measured for it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no tree file; names the file and the fields.
    """
    told = read_json(file, TreeFile)
    tree = CandidateTree(told.paths)
    if told.accuracies is None:
        return tree, UNCALIBRATED
    latency = UNCALIBRATED.latency if told.latency is None else told.latency
    return tree, Calibration(told.accuracies, latency, told.made.model_dump(exclude_unset=True))


def write_tree(file: Path, tree: CandidateTree, calibration: Calibration = UNCALIBRATED) -> None:
    """Write a tree, its root implied, and what was measured for it."""
    told: dict[str, Any] = {"version": 1, "paths": [list(path) for path in tree.paths[1:]]}
    if calibration is not UNCALIBRATED:
        told["accuracies"] = [list(row) for row in calibration.accuracies]
    if calibration.made:
        told["latency"] = {str(nodes): ms for nodes, ms in calibration.latency.items()}
        told["made"] = dict(calibration.made)
    write_json(file, told)
