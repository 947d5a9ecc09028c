"""`medusa export`: write heads for an inference engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .options import HubOptions
from .parameters import argument, option


@dataclass(frozen=True, kw_only=True)
class ExportOptions(HubOptions):
    """Options of `medusa export`."""

    model: str = argument("Folder or hub id of heads in any format, 'demo' or 'smollm2'", "MODEL")
    folder: Path = argument("New folder for the exported heads", "DIR")
    to: Literal["vllm", "tgi", "tensorrt-llm", "original", "common"] = option(
        "Engine that will read them; common is one folder for vLLM, TGI and TensorRT-LLM"
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = option(
        "Dtype of the weights; auto keeps the model's", default="auto"
    )
    base: str | None = option(
        "Base model of the heads; by default the one that they name", default=None
    )


def export(options: ExportOptions) -> None:
    """Write heads in the format of an inference engine, and say how to start it."""
    from .export_view import show_export

    show_export(options)
