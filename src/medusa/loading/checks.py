"""Checks of base models and of the options and calibrations that come with them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..core.checks import Prepack, running_device
from ..core.schedule import UNCALIBRATED, Calibration
from ..hardware.provenance import device_name
from ..runtime.dtypes import fast_dtype


def usable_calibration(
    calibration: Calibration, base: PreTrainedModel, name: str, prepack: Prepack
) -> Calibration:
    """Return a calibration without the figures that do not hold for this base model.

    Latencies hold only on the device, in the dtype and with the packed weights that they were
    measured with. Elsewhere only the accuracies are kept, and a warning says that another tree may
    be faster.
    """
    here = {
        "device": device_name(running_device(base)),
        "dtype": str(base.dtype).removeprefix("torch."),
        "prepack": f"prepack={prepack!r}",
    }
    made = dict(calibration.made)
    if "prepack" in made:
        made["prepack"] = f"prepack={made['prepack']!r}"
    differing = [
        f"{made[key]} (here {value})"
        for key, value in here.items()
        if made.get(key) not in (None, value)
    ]
    if not differing:
        return calibration
    warnings.warn(
        f"the tree of {name} was calibrated on {', '.join(differing)}; it works, but `medusa "
        f"calibrate {name}` may find a faster one",
        stacklevel=4,
    )
    return Calibration(calibration.accuracies, UNCALIBRATED.latency)


def found_faster_compiled(calibration: Calibration) -> bool:
    """Return True if a usable calibration found compiled steps faster with this torch.

    Compiled code of another torch is of no use, and compiling again takes long.
    """
    made = calibration.made
    return made.get("compiled") is True and made.get("torch") == torch.__version__


def in_fast_dtype(base: PreTrainedModel, options: Mapping[str, Any]) -> PreTrainedModel:
    """Return a base model in the dtype that is fastest here, if it was loaded with dtype="auto".

    It stays as it is on a GPU and on machines with one, to which it may move later.

    Args:
        options: keyword arguments that the model was loaded with.
    """
    quantised = getattr(base, "hf_quantizer", None) is not None
    elsewhere = torch.cuda.is_available() or options.get("device_map") is not None
    if options.get("dtype") != "auto" or quantised or elsewhere or base.device.type != "cpu":
        return base
    fast = fast_dtype(base.dtype)
    return base if fast == base.dtype else base.to(fast)


def tree_attention(options: dict[str, Any]) -> dict[str, Any]:
    """Return loading options in which sdpa replaces FlashAttention, which takes no tree mask."""
    if not str(options.get("attn_implementation", "")).startswith("flash"):
        return options
    warnings.warn(
        "FlashAttention takes no tree mask: using attn_implementation='sdpa'", stacklevel=3
    )
    return {**options, "attn_implementation": "sdpa"}


def loaded_base(base: Any, options: dict[str, Any]) -> PreTrainedModel:
    """Return a base model that the user has loaded.

    Raises:
        TypeError: `base` is no transformers model, or there are options for loading it.
    """
    if not isinstance(base, PreTrainedModel):
        raise TypeError(
            "the base model must be a transformers model, a folder or a hub id, got "
            f"{type(base).__name__}; of a PEFT model pass get_base_model(), whose layers carry the "
            "adapter"
        )
    if options:
        raise TypeError(
            f"{', '.join(sorted(options))}: unknown, or of no use for a base model that is already "
            "loaded"
        )
    return base


def heads_folder(folder: Path | None, name: str | Path) -> Path:
    """Return a folder of heads.

    Args:
        folder: None where a search for heads found none.
        name: what was searched.

    Raises:
        ValueError: `folder` is None.
    """
    if folder is None:
        raise ValueError(
            f"{name} holds no Medusa heads: MedusaModel.from_base adds new ones to a model"
        )
    return folder
