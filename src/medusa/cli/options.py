"""Options that several commands share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import typer

from .parameters import argument, option

if TYPE_CHECKING:
    import torch

TEMPERATURES = (1e-6, 1e6)
"""Range of temperatures above 0 at which the scaled logits of any model stay finite in float32."""
LARGEST_LENGTH = 2**31 - 1
"""Upper limit of options that count tokens; no model holds more."""
LARGEST_SEED = 2**64 - 1
"""Largest seed that torch accepts."""


def _check_finite(value: float | None) -> float | None:
    """Raise BadParameter for NaN and infinity, which `min` and `max` let pass."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def _check_temperature(value: float) -> float:
    least, most = TEMPERATURES
    if _check_finite(value) and not least <= value <= most:
        raise typer.BadParameter(
            f"{value:g} is neither 0, which decodes greedily, nor between {least:g} and {most:g}"
        )
    return value


def _check_top_p(value: float | None) -> float | None:
    if _check_finite(value) == 0:
        raise typer.BadParameter(
            "0 leaves no token to sample: give a mass above 0, or decode greedily"
        )
    return value


def length_option(default: int = 256) -> Any:
    """Return the field of the option `--max-new-tokens`."""
    text = "Maximum number of new tokens in an answer"
    return option(text, default=default, min=1, max=LARGEST_LENGTH)


def temperature_option(default: float = 0.0) -> Any:
    """Return the field of the option `--temperature`."""
    return option(
        "Sampling temperature; 0 decodes greedily",
        default=default,
        min=0.0,
        callback=_check_temperature,
    )


def split_option() -> Any:
    """Return the field of the option `--split`."""
    return option("Split to read from a dataset on the hub", default="train")


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """Options for a model on the hub."""

    revision: str | None = option(
        "Revision of MODEL on the hub; by default its main branch", default=None
    )
    trust_remote_code: bool = option(
        "Run Python code from the model's repository", "--trust-remote-code", default=False
    )

    @property
    def hub_arguments(self) -> dict[str, Any]:
        """Keyword arguments for transformers."""
        revision = {} if self.revision is None else {"revision": self.revision}
        return {**revision, **({"trust_remote_code": True} if self.trust_remote_code else {})}


@dataclass(frozen=True, kw_only=True)
class ModelOptions(HubOptions):
    """Options that choose a model and say how it runs.

    Raises:
        typer.BadParameter: two options contradict each other.
    """

    model: str = argument(
        "Folder or hub id of Medusa heads or of a base model, a GGUF file, 'demo' for the embedded "
        "model, or 'smollm2' for SmolLM2-135M-Instruct, which is fetched when first used",
        "MODEL",
    )
    base: str | None = option(
        "Base model to run the heads on; by default the one that the heads name", default=None
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "Number format of the weights; auto is the checkpoint's own, or float32 on a CPU that "
        "multiplies this faster",
        default="auto",
    )
    device: str | None = option(
        "Device for the model, such as cpu, cuda or cuda:1; by default cpu", default=None
    )
    device_map: str | None = option(
        "How transformers spreads the model over devices, such as auto (needs accelerate); by "
        "default it does not",
        default=None,
    )
    compile: bool | None = option(
        "Compile the model's layers before the first answer, which makes steps faster and takes "
        "some seconds the first time (CPU); by default where medusa calibrate found it faster",
        default=None,
    )
    prepack: Literal["half", "int4"] | None = option(
        "Store weights in fewer bits, which is faster (CPU): half stores float32 weights in 16 "
        "bits where that changes no value; int4 also stores in 4 bits what was in 4 bits before",
        default=None,
    )

    def __post_init__(self) -> None:
        if self.device is not None and self.device_map is not None:
            raise typer.BadParameter(
                "--device and --device-map both place the model: leave one out"
            )


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Options that choose how tokens are sampled and how candidates are accepted.

    Raises:
        typer.BadParameter: two options contradict each other.
    """

    max_new_tokens: int = length_option()
    temperature: float = temperature_option()
    top_p: float | None = option(
        "Sample from the most probable tokens that together have this probability; by default "
        "from all",
        default=None,
        min=0.0,
        max=1.0,
        callback=_check_top_p,
    )
    top_k: int | None = option(
        "Sample from this many of the most probable tokens; by default from all",
        default=None,
        min=1,
        max=LARGEST_LENGTH,
    )
    acceptance: Literal["auto", "greedy", "typical", "rejection"] = option(
        "How candidates are accepted. greedy: those that greedy decoding gives. rejection: so that "
        "sampled text follows the model's distribution. auto: greedy at temperature 0, otherwise "
        "rejection. typical: all that are plausible, for more tokens per step; sampled text "
        "follows another distribution and is the same for every seed, and text at temperature 0 is "
        "greedy",
        default="auto",
    )

    def __post_init__(self) -> None:
        if self.temperature == 0 and (self.top_p is not None or self.top_k is not None):
            raise typer.BadParameter(
                "--top-p and --top-k shape sampling: pass --temperature above 0"
            )
        if self.temperature == 0 and self.acceptance == "rejection":
            raise typer.BadParameter("--acceptance rejection samples: pass --temperature above 0")
        if self.temperature > 0 and self.acceptance == "greedy":
            raise typer.BadParameter("--acceptance greedy does not sample: leave out --temperature")

    def arguments(self) -> dict[str, Any]:
        """Return keyword arguments of `MedusaModel.generate`; `acceptance` is left out.

        Options that are not set are left out as well, so that the model's own generation
        configuration counts.
        """
        arguments: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.temperature > 0,
        }
        if self.temperature:
            sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
            arguments |= {name: value for name, value in sampling.items() if value is not None}
        return arguments


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(DecodingOptions):
    """Options that choose how answers are decoded."""

    seed: int | None = option(
        "Seed for sampling; the same seed gives the same text; by default a random one",
        default=None,
        min=0,
        max=LARGEST_SEED,
    )
    plain: bool = option("Decode one token per step, without the heads", "--plain", default=False)

    @cached_property
    def generator(self) -> torch.Generator | None:
        """The source of random numbers; one for all answers, so that no two draw the same."""
        import torch

        return None if self.seed is None else torch.Generator().manual_seed(self.seed)

    def arguments(self) -> dict[str, Any]:
        """Return keyword arguments of `MedusaModel.steps` for one answer."""
        from ..core.engine import PLAIN

        return {
            **super().arguments(),
            "acceptance": self.acceptance,
            "generator": self.generator,
            "tree": PLAIN if self.plain else None,
        }
