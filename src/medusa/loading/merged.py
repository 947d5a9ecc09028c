"""Adapters that were merged into a base model, and are saved again beside its heads."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..formats import adapters, bases


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter whose weights were merged into those of a base model.

    Attributes:
        folder: the adapter's folder.
        digest: hash of the adapter's weights.
        fingerprint: checksums of the base model's weights after the merge.
    """

    folder: Path
    digest: str
    fingerprint: dict[str, tuple[torch.dtype, int]]

    @classmethod
    def of(cls, folder: Path, base: PreTrainedModel) -> MergedAdapter:
        """Return the adapter in a folder, which was just merged into a base model."""
        return cls(folder, adapters.digest(folder), bases.fingerprint(base))

    def copy(self, place: Path) -> None:
        """Copy the adapter's folder; the merged weights no longer tell the adapter apart.

        Raises:
            ValueError: the folder is gone or holds another adapter.
        """
        if not self.folder.is_dir() or adapters.digest(self.folder) != self.digest:
            raise ValueError(
                f"{self.folder} does not hold the base model's adapter any more: put it back"
            )
        shutil.copytree(self.folder, place)
