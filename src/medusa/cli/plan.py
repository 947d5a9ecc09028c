"""`medusa plan`: what to expect of Medusa on hardware that is not at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .parameters import argument, option


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of `medusa plan`."""

    model: str = argument(
        "Shape of the model: 7b, 13b or 33b (LLaMA), demo, smollm2, or a config.json or its folder",
        "MODEL",
    )
    device: str = option(
        "Device: A100-80GB-PCIe, A40, A6000, H100, H200, RTX-4090, or 'here', which is measured",
        default="H100",
    )
    batch: int = option("Number of rows that decode at once", default=1, min=1, max=4096)
    context: int = option("Tokens of context of each row", default=1024, min=1, max=1 << 24)
    trace: str | None = option(
        "Calibrated heads (folder, demo or smollm2) or their medusa_tree.json, whose accuracies "
        "are used; by default those that the paper's authors published for Vicuna-7B",
        default=None,
        metavar="FOLDER|FILE",
    )
    heads: int | None = option(
        "Number of heads; by default all that the accuracies are of", default=None, min=1
    )
    layers: int = option("Residual layers of each head", default=1, min=0)
    own_lm_head: bool = option(
        "Heads have lm_heads of their own; otherwise they share the model's", default=True
    )
    max_nodes: int = option("Maximum number of nodes in the tree", default=256, min=1, max=1024)
    dtype: Literal["float32", "float16", "bfloat16"] = option(
        "Dtype of what is measured with --device here", default="bfloat16"
    )
    json: Path | None = option("File for the figures as JSON; by default none", default=None)


def plan(options: PlanOptions) -> None:
    """Predict the best tree, its speedup and the memory on a device, from a model's config."""
    from .plan_view import show

    show(options)
