"""Report of a calibration: what was measured, and the tree that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.schedule import Calibration
from ..core.tree import CandidateTree
from .choice import (
    Interval,
    Prediction,
    overhead_interval,
    predictions,
    rate_interval,
    resampled,
    share_interval,
)
from .latency import Latency
from .recording import Recording
from .search import expected_rate, likelihoods
from .settings import CalibrationSettings
from .trial import TreeMeasurement


@dataclass(frozen=True)
class Report:
    """Result of a calibration; a model decodes by its `tree` and its `calibration`.

    Attributes:
        settings: the settings it was made with.
        recording: the heads' credits along the model's answers.
        latency: step times by tree size.
        candidates: the best tree of 1, 2, ... nodes, with predicted figures.
        chosen: the candidate that is expected to be fastest.
        measured: the chosen tree, measured on other prompts.
        metadata: provenance, model, decoding arguments and prompts.
    """

    settings: CalibrationSettings
    recording: Recording
    latency: Latency
    candidates: list[Prediction]
    chosen: Prediction
    measured: TreeMeasurement
    metadata: dict[str, Any]

    @property
    def tree(self) -> CandidateTree:
        """The chosen tree."""
        return self.chosen.tree

    @property
    def calibration(self) -> Calibration:
        """The measurements that are stored beside the heads and read at decoding time."""
        predicted = {
            name: value
            for name, value in self.predicted_figures().items()
            if not name.endswith("interval")
        }
        metadata = {
            **self.metadata,
            "predicted": predicted,
            "measured": self.measured_figures(),
            "frequencies": likelihoods(self.recording, self.tree),
        }
        return Calibration(
            [row[:10] for row in self.recording.accuracies()], self.latency.curve(), metadata
        )

    def predicted_figures(self) -> dict[str, Any]:
        """Return the predicted figures of the chosen tree, with 95 % intervals."""
        rates = rate_interval(self.recording, self.tree)
        overheads = overhead_interval(self.latency, len(self.tree))
        return {
            "expected_length": expected_rate(self.recording, self.tree),
            "acceleration_rate": self.chosen.acceleration_rate,
            "acceleration_rate_interval": rates,
            "overhead": self.chosen.overhead,
            "overhead_interval": overheads,
            "speedup": self.chosen.speedup,
            "speedup_interval": (rates[0] / overheads[1], rates[1] / overheads[0]),
        }

    def measured_figures(self) -> dict[str, Any]:
        """Return the figures of the chosen tree measured on other prompts, with intervals."""
        measured = self.measured
        return {
            "acceleration_rate": measured.acceleration_rate,
            "acceleration_rate_interval": resampled(
                [*map(float, measured.tokens)], [*map(float, measured.steps)]
            ),
            "overhead": measured.overhead,
            "speedup": measured.speedup,
            "speedup_interval": resampled(measured.plain_seconds, measured.seconds),
            "prompts": len(measured.tokens),
        }

    def by_heads(self) -> list[Prediction]:
        """Return the fastest prediction with only the first 1, 2, ... heads (section 2.2.3)."""
        return [
            max(
                predictions(self.recording.first(heads), self.latency, self.settings.max_nodes),
                key=lambda prediction: prediction.speedup,
            )
            for heads in range(1, self.recording.num_heads + 1)
        ]

    def intervals(self, ranks: int) -> list[list[Interval]]:
        """Return the 95 % intervals [K][ranks] of the heads' accuracies."""
        counts = self.recording.known.sum(0).tolist()
        accuracies = self.recording.accuracies()
        return [
            [share_interval(share, count) for share in row[:ranks]]
            for row, count in zip(accuracies, counts, strict=True)
        ]

    def joint(self) -> list[tuple[tuple[int, ...], float]]:
        """Return the paths of the largest candidate tree, each with its share of positions.

        A path's share is that of the positions at which the whole path is right.
        """
        tree = self.candidates[-1].tree
        return list(zip(tree.paths, likelihoods(self.recording, tree), strict=True))[1:]

    def to_json(self) -> dict[str, Any]:
        """Return the whole report as values that JSON can hold."""
        overheads = self.latency.overheads()
        return {
            "accuracy": self.recording.accuracies(),
            "accuracy_interval": self.intervals(10),
            "positions": self.recording.known.sum(0).tolist(),
            "joint": [
                {"path": list(path), "probability": share, "positions": len(self.recording.credit)}
                for path, share in self.joint()
            ],
            "latency": {str(nodes): ms for nodes, ms in self.latency.curve().items()},
            "overhead_interval": {
                str(nodes): overhead_interval(self.latency, nodes) for nodes in overheads
            },
            "tree": [list(path) for path in self.tree.paths[1:]],
            "predicted": self.predicted_figures(),
            "measured": self.measured_figures(),
            "by_nodes": [_prediction_figures(each) for each in self.candidates],
            "by_heads": [_prediction_figures(each) for each in self.by_heads()],
            "made": self.metadata,
        }


def _prediction_figures(prediction: Prediction) -> dict[str, float]:
    return {
        "nodes": len(prediction.tree),
        "depth": prediction.tree.max_depth,
        "acceleration_rate": prediction.acceleration_rate,
        "overhead": prediction.overhead,
        "speedup": prediction.speedup,
    }
