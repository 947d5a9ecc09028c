"""Publication of heads on the Hugging Face hub, with a model card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, hf_hub_download
from yaml import YAMLError

from ..formats import card, names, native
from ..formats.bases import Origin

LICENCE = ("license", "license_name", "license_link")
"""Fields of a model card that state the licence."""


@dataclass(frozen=True)
class Repository:
    """A repository on the hub that heads are published in; it need not exist.

    Attributes:
        api: the hub, with the user's token.
        name: hub id of the repository, `owner/name`.
        branch: the branch that is written; None is the main branch.
    """

    api: HfApi
    name: str
    branch: str | None = None

    def check_free(self) -> None:
        """Raise ValueError if the repository holds a model, whose configuration heads replace."""
        if self._has(names.CONFIG) and not self._has(names.WEIGHTS):
            raise ValueError(
                f"{self.name} holds a model, whose {names.CONFIG} heads would replace: name "
                "another one"
            )

    def add_card(self, folder: Path, source: Path | None) -> None:
        """Add the card to a folder of heads, unless the repository has one.

        Args:
            folder: the folder to be uploaded, in the native format.
            source: the folder that the heads were loaded from, whose card is taken if it has one,
                and whose report of the training is described if not; None if there is none.
        """
        if source is not None and (source / card.CARD).is_file():
            shutil.copyfile(source / card.CARD, folder / card.CARD)
        elif not self._has(card.CARD):
            (folder / card.CARD).write_text(self._card(folder, source), encoding="utf-8")

    def upload(self, folder: Path, private: bool | None, **commit: Any) -> CommitInfo:
        """Upload a folder in one commit; the repository and its branch are created if need be.

        Args:
            private: make a new repository private.
            commit: passed to `HfApi.upload_folder`.
        """
        self.api.create_repo(self.name, private=private, exist_ok=True)
        if self.branch is not None and not self.branch.startswith("refs/"):
            self.api.create_branch(self.name, branch=self.branch, exist_ok=True)
        return self.api.upload_folder(
            repo_id=self.name, folder_path=folder, revision=self.branch, **commit
        )

    def _has(self, file: str) -> bool:
        return self.api.file_exists(self.name, file, revision=self.branch)

    def _card(self, folder: Path, source: Path | None) -> str:
        """Return a new card for the heads in `folder`, which were loaded from `source`."""
        config = native.read_config(folder) or native.HeadsFile()
        base, revision = config.base_model_name_or_path, config.base_model_revision
        licence = {} if base is None else self._licence(base, revision)
        training = None if source is None else card.read_training(source)
        return card.Card(folder, self.name, licence, training).text()

    def _licence(self, base: str, revision: str | None) -> dict[str, str]:
        """Return what a model's card says about its licence; {} if there is no such card."""
        try:
            file = hf_hub_download(base, card.CARD, revision=revision, token=self.api.token)
            stated = ModelCard.load(file).data.to_dict()
        except (OSError, ValueError, YAMLError):  # there is no card, or its metadata are broken
            return {}
        return {name: stated[name] for name in LICENCE if isinstance(stated.get(name), str)}


def check_named(base: str | None, origin: Origin) -> None:
    """Check that the base model has a name that others can load.

    Args:
        base: the name that the heads are to store; None stores the origin's.
        origin: the place that the base model was loaded from.

    Raises:
        ValueError: there is no such name.
    """
    if base is not None and not names.is_path(base):
        return
    name = origin.name if base is None else base
    if name and (base is not None or not origin.is_hub_id):
        raise ValueError(
            f"the base model lies in {name}, which others do not have: name its hub id, "
            "base='owner/name'"
        )
    if not name:
        raise ValueError("the base model has no name: name its hub id, base='owner/name'")
