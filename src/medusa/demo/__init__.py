"""The embedded model: a small Llama with Medusa heads that answers generated tasks.

It comes with the package, so that speed and quality can be measured without a download.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..loading import MedusaModel
    from .tasks import Task

FOLDER = Path(__file__).parent / "model"
FIRST_CALIBRATION_TASK = 30_000_000
"""Number of the first task for calibration; benchmarks take tasks with lower numbers."""


def heads_folder() -> Path:
    """Return the folder of the embedded model's heads, which name its base model.

    Raises:
        FileNotFoundError: this copy of the package came without the model.
    """
    if not (FOLDER / "heads").is_dir():
        raise FileNotFoundError(
            f"no embedded model in {FOLDER}: build it with python -m tools.demo_model.train"
        )
    return FOLDER / "heads"


def load(
    *, inflate: int | None = None, **kwargs: Any
) -> tuple[MedusaModel, PreTrainedTokenizerBase]:
    """Load the embedded model with its heads, and its tokenizer.

    Args:
        inflate: widen the MLPs to this many columns, of which the new ones add zero: the same
            function at the cost of a larger model (see `inflated`).
        kwargs: `dtype`, by default float32, and arguments of `MedusaModel.from_pretrained`.

    Raises:
        FileNotFoundError: this copy of the package came without the model.
    """
    import torch

    from ..loading import MedusaModel, NamedModel
    from .inflation import inflated

    named = NamedModel.find(heads_folder(), dtype=kwargs.pop("dtype", torch.float32))
    base = named.load_base()
    if inflate is not None:
        base = inflated(base, inflate)
    model = MedusaModel.from_pretrained(heads_folder(), base=base, **kwargs)
    return model, named.tokenizer()


def calibration_tasks(count: int) -> list[Task]:
    """Return held-out tasks of all categories for calibration; no benchmark uses them."""
    from .tasks import CATEGORIES, make_task

    return [
        make_task(CATEGORIES[place % 6], FIRST_CALIBRATION_TASK + place // 6, "test")
        for place in range(count)
    ]
