"""Options that several commands share, and the values that they take."""

from __future__ import annotations

import math
from enum import Enum
from typing import Annotated, Optional

import typer

TEMPERATURES = (1e-6, 1e6)
"""Temperatures between which logits of any model stay finite numbers in float32."""
MOST_TOKENS = 2**31 - 1
"""Longest answer that can be asked for; longer ones have no meaning for any model."""
LARGEST_SEED = 2**64 - 1
"""What torch takes as a seed."""


class DType(str, Enum):
    """Values of `--dtype`."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Acceptance(str, Enum):
    """Values of `--acceptance`."""

    auto = "auto"
    greedy = "greedy"
    typical = "typical"
    rejection = "rejection"


def _finite(value: float | None) -> float | None:
    """Return a number, unless it is NaN or infinite, which a range alone lets pass."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def _temperature(value: float) -> float:
    least, most = TEMPERATURES
    if _finite(value) and not least <= value <= most:
        raise typer.BadParameter(
            f"{value:g} is neither 0, which decodes greedily, nor between {least:g} and {most:g}"
        )
    return value


def _mass(value: float | None) -> float | None:
    if _finite(value) == 0:
        raise typer.BadParameter(
            "0 leaves no token to sample: give a mass above 0, or decode greedily"
        )
    return value


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder or hub id of Medusa heads or of a base model, or 'demo', the embedded "
        "model.",
        show_default=False,
    ),
]
Base = Annotated[
    Optional[str],  # noqa: UP045 (typer reads it at run time)
    typer.Option(
        help="Base model of the heads, if not the one that they name.", show_default=False
    ),
]
Precision = Annotated[DType, typer.Option("--dtype", help="Number format of the weights.")]
Device = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Device of the model, such as cpu, cuda or cuda:1.", show_default=False),
]
DeviceMap = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="How to spread the model over devices, such as auto (needs accelerate).",
        show_default=False,
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Revision of MODEL on the hub.", show_default=False)
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the model's step first, which takes up to a minute; steps are faster then "
        "(CPU).",
    ),
]
Half = Annotated[
    bool,
    typer.Option(
        "--half-weights",
        help="Keep float32 weights in 16 bits where no digit is lost: faster (CPU).",
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code from the model's repository.")
]
MaxNewTokens = Annotated[
    int, typer.Option(min=1, max=MOST_TOKENS, help="Most tokens of an answer.")
]
Temperature = Annotated[
    float,
    typer.Option(
        min=0.0, callback=_temperature, help="0 decodes greedily, a higher value samples."
    ),
]
TopP = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        min=0.0,
        max=1.0,
        callback=_mass,
        help="Sample from the most probable tokens that have this probability together.",
        show_default=False,
    ),
]
TopK = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1,
        max=MOST_TOKENS,
        help="Sample from this many most probable tokens.",
        show_default=False,
    ),
]
Accept = Annotated[
    Acceptance,
    typer.Option(
        "--acceptance",
        help="How candidates are accepted. auto: greedy at temperature 0, else rejection, which "
        "keeps the model's "
        "distribution. typical: more tokens a step from another distribution, the same text for "
        "every --seed; at "
        "temperature 0 it is greedy.",
    ),
]
Seed = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=0,
        max=LARGEST_SEED,
        help="Seed of sampling: the same seed gives the same text.",
        show_default=False,
    ),
]
Plain = Annotated[bool, typer.Option("--plain", help="Decode without the heads, one token a step.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")]
