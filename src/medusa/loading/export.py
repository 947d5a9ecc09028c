"""Export of a model's heads for an inference engine, checked and read back."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.heads import MedusaConfig
from ..files import check_writable, replacing_all
from ..formats.export import Engine, check_export, exported, size_of, write_export
from ..formats.names import CONFIG
from ..formats.stored import read_heads
from .model import MedusaModel

POSITIONS = 8
"""Number of hidden states on which exported heads are compared."""


@dataclass(frozen=True)
class Export:
    """Heads that are ready to be written for an engine.

    Attributes:
        model: the model.
        engine: the engine that will read the heads.
        config: configuration of the heads as the engine gets them.
        tensors: their tensors by the engine's names.
        dtype: of the weights in the file; None leaves them as they are.
    """

    model: MedusaModel
    engine: Engine
    config: MedusaConfig
    tensors: dict[str, Tensor]
    dtype: torch.dtype | None

    @classmethod
    def of(cls, model: MedusaModel, engine: Engine, dtype: torch.dtype | None = None) -> Export:
        """Prepare an export; nothing is written.

        Raises:
            ValueError: the engine does not compute these heads, or the base model's lm_head, which
                they share, is quantised or offloaded.
        """
        lm_head = model.base.get_output_embeddings().weight
        if lm_head.is_meta or not lm_head.is_floating_point():
            raise ValueError(
                "the base model's lm_head is quantised or offloaded: load the model in bfloat16 or "
                "float16 on one device to export its heads"
            )
        config, tensors = exported(engine, model.heads, lm_head.detach())
        return cls(model, engine, config, tensors, dtype)

    @property
    def bytes(self) -> int:
        """Size of the file with the heads."""
        return size_of(self.tensors, self.dtype)

    def changes(self) -> list[str]:
        """Return in words how the exported heads differ from the model's."""
        own, said = self.model.heads.config, []
        if self.config.own_lm_head and not own.own_lm_head:
            said.append("each head gets a copy of the base model's lm_head")
        if self.config.bias and not own.bias:
            said.append("layers get biases of zero")
        if self.config.draft_vocab_size != own.draft_vocab_size:
            said.append("heads propose all tokens, as the engine does not know a draft vocabulary")
        return said

    def write(self, folder: Path, base: str) -> None:
        """Write the heads to a new or empty folder, check it and read it back.

        Args:
            base: name of the base model for `config.json`.

        Raises:
            ValueError: the folder is not empty.
            OSError: the folder cannot be written.
            RuntimeError: the folder does not hold what was exported; nothing stays there.
        """
        check_writable(folder, folder=True)
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty: name a new folder, so nothing is replaced")
        with replacing_all(folder, (CONFIG,)) as new:
            write_export(new, self.engine, self.config, self.tensors, base, self.dtype)
            check_export(new, self.engine)
            self._compare(new)

    @torch.inference_mode()
    def _compare(self, folder: Path) -> None:
        """Compare the logits of the written heads with those of the model's.

        Raises:
            RuntimeError: they differ by more than the dtype's rounding explains.
        """
        base, own = self.model.base, self.model.heads
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = read_heads(folder, base)
        weight = next(own.parameters(), base.get_output_embeddings().weight)
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(POSITIONS, own.config.hidden_size, generator=generator).to(weight)
        expected = own(hidden, base.get_output_embeddings()).float()
        found = written.to(weight)(hidden, base.get_output_embeddings()).float()
        tolerance = max(torch.finfo(_coarser(self.dtype, weight.dtype)).eps * 8, 1e-6)
        if not torch.allclose(
            found, expected, rtol=0, atol=tolerance * float(expected.abs().max())
        ):
            raise RuntimeError(
                f"the heads written for {self.engine.title} do not compute the model's logits; "
                "please report this"
            )


def _coarser(one: torch.dtype | None, other: torch.dtype) -> torch.dtype:
    """Return the dtype with the larger rounding error."""
    return max((one or other, other), key=lambda dtype: torch.finfo(dtype).eps)
