"""The embedded model: a small Llama that answers seeded tasks, so that speed and quality can be
measured offline.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..loading import MedusaModel
    from .tasks import Task

FOLDER = Path(__file__).parent / "model"


def load(
    *, inflate: int | None = None, **kwargs: Any
) -> tuple[MedusaModel, PreTrainedTokenizerBase]:
    """The embedded model with its heads, and its tokenizer.

    Args:
        inflate: widen its MLPs to this many columns whose output is zero: the same function at the
            cost of a larger model (see `inflated`).
        kwargs: as of `MedusaModel.from_pretrained`.

    Raises:
        FileNotFoundError: this copy of the package came without the model.
    """
    if not (FOLDER / "heads").is_dir():
        raise FileNotFoundError(
            f"no embedded model in {FOLDER}: build it with python -m tools.demo_model.train"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..loading import MedusaModel
    from .inflation import inflated

    base = AutoModelForCausalLM.from_pretrained(
        FOLDER / "base", dtype=kwargs.pop("dtype", torch.float32)
    )
    if inflate is not None:
        base = inflated(base, inflate)
    model = MedusaModel.from_pretrained(FOLDER / "heads", base=base.eval(), **kwargs)
    return model, AutoTokenizer.from_pretrained(FOLDER / "base")


def calibration_tasks(count: int) -> list[Task]:
    """Held-out tasks of all categories for calibration; no benchmark asks them."""
    from .tasks import CATEGORIES, make_task

    return [
        make_task(CATEGORIES[place % 6], 30_000_000 + place // 6, "test") for place in range(count)
    ]
