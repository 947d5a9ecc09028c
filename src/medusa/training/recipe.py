"""`Recipe`: all options of a training run; defaults are the paper's values (appendix B.2)."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

Method = Literal["medusa-1", "medusa-2", "direct", "backbone"]
Schedule = Literal["constant", "sine"]
Stage = Literal["heads", "backbone", "both"]
"""Part of a run: it trains the heads, the backbone, or both."""

ALL_METHODS: tuple[Method, ...] = get_args(Method)
BACKBONE_METHODS: tuple[Method, ...] = ("medusa-2", "direct", "backbone")
"""Methods that train the backbone."""

MUON = "muon"
"""The only `optimizer` that is not one of transformers' names."""
POSITIVE = (
    "num_heads",
    "decay",
    "epochs",
    "lr",
    "heads_lr_factor",
    "batch_size",
    "micro_batch_size",
    "log_every",
)
NOT_NEGATIVE = (
    "num_layers",
    "draft_vocab_size",
    "overlap",
    "heads_epochs",
    "backbone_epochs",
    "lambda0",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "evaluate_every",
    "save_every",
    "seed",
)


def _option(default: Any, text: str, methods: tuple[Method, ...] = ALL_METHODS) -> Any:
    """Return a dataclass field with a help text and the methods in which it has an effect."""
    return field(default=default, metadata={"help": text, "methods": methods})


@dataclass(frozen=True)
class Recipe:
    """Options of a training run of heads, and with Medusa-2 of the backbone.

    The `help` in each field's metadata describes it.

    Raises:
        ValueError: a value is out of range, two values contradict each other, or one has no effect;
            the message names the fields and the remedy.
    """

    method: Method = _option(  # noqa: RUF009 (a field)
        "medusa-1",
        "What is trained. medusa-1: the heads. medusa-2: heads and backbone. For comparison, "
        "direct: both without protection of the backbone; backbone: the backbone alone",
    )
    num_heads: int = _option(5, "Number of new heads, if the model has none")
    num_layers: int = _option(1, "Residual layers of each new head")
    own_lm_head: bool = _option(
        True, "Give every new head an lm_head of its own; otherwise they share the model's"
    )
    decay: float = _option(
        0.8,
        "Weight of head k in the heads' loss is decay^k (lambda_k of eq. 1)",
        ("medusa-1", "medusa-2", "direct"),
    )
    overlap: float = _option(
        0.0,
        "Weight of 1 - q(target), the probability that a head's token is rejected, beside the "
        "cross-entropy in each head's loss",
        ("medusa-1", "medusa-2", "direct"),
    )
    draft_vocab_size: int = _option(
        0,
        "Number of tokens that the heads learn and propose, the most frequent ones in the data; 0 "
        "is all tokens. Fewer make training and decoding faster",
        ("medusa-1",),
    )

    epochs: float = _option(
        2.0, "Passes over the data; with medusa-2, passes that train heads and backbone together"
    )
    heads_epochs: float = _option(
        0.0, "Passes before these that train the heads alone", ("medusa-2",)
    )
    backbone_epochs: float = _option(
        0.0, "Passes before these that train the backbone alone", ("medusa-2", "direct")
    )
    lambda0: float = _option(
        0.2, "Weight of the heads' loss beside the backbone's (lambda_0 of eq. 2)", ("medusa-2",)
    )
    lambda0_schedule: Schedule = _option(  # noqa: RUF009 (a field)
        "constant",
        "constant, or sine: lambda_0 grows from 0 to its value along a sine",
        ("medusa-2",),
    )
    distill: bool = _option(
        False,
        "Train the backbone to keep its original distribution (self-distillation), not on the "
        "data's tokens",
        ("medusa-2",),
    )

    lora_rank: int = _option(
        32, "Rank of the backbone's adapter; 0 trains the backbone's own weights", BACKBONE_METHODS
    )
    lora_alpha: int = _option(
        16, "Scale of the adapter, which is divided by its rank", BACKBONE_METHODS
    )
    lora_dropout: float = _option(0.05, "Dropout of the adapter's input", BACKBONE_METHODS)
    bits: int = _option(
        0, "Load the backbone in 4 or 8 bits (bitsandbytes); 0 loads it as it is stored"
    )
    gradient_checkpointing: bool = _option(
        False,
        "Save memory: compute the backbone's activations again instead of keeping them",
        BACKBONE_METHODS,
    )

    lr: float = _option(5e-4, "Peak learning rate of the backbone")
    heads_lr_factor: float = _option(
        4.0,
        "Peak learning rate of the heads, as a multiple of the backbone's",
        ("medusa-1", "medusa-2"),
    )
    warmup_steps: int = _option(
        40,
        "Steps in which the learning rate rises, at most a tenth of all; it then falls to 0 along "
        "a cosine",
    )
    weight_decay: float = _option(0.0, "Weight decay of the optimizer")
    max_grad_norm: float = _option(1.0, "Largest norm of the gradients; longer ones are clipped")
    optimizer: str = _option(
        "auto",
        "A transformers optimizer; auto: 8-bit AdamW where bitsandbytes runs on a GPU, else AdamW; "
        "muon: Muon for the matrices of a backbone that was trained with it",
    )
    batch_size: int = _option(64, "Examples (with packing: rows) a step, over all devices")
    micro_batch_size: int = _option(
        4, "Examples (with packing: rows) that a device computes at once"
    )
    max_length: int = _option(2048, "Largest number of tokens of an example; longer ones are cut")
    packing: bool = _option(
        False, "Put several examples into a row of max_length tokens; they do not see each other"
    )
    bf16: bool = _option(False, "Compute in bfloat16; weights that are trained stay in float32")
    cache_hidden_states: bool = _option(
        False,
        "Run the backbone over the data once and keep its hidden states on disk",
        ("medusa-1",),
    )

    evaluation_share: float = _option(
        0.02, "Share of the data that is held out for evaluation, if no file is given"
    )
    evaluate_every: int = _option(
        200, "Steps between evaluations; 0 evaluates at the beginning and the end only"
    )
    save_every: int = _option(
        200, "Steps between checkpoints, of which the last two are kept; 0 saves none"
    )
    log_every: int = _option(10, "Steps between lines of the log")
    seed: int = _option(0, "Seed of new weights, of dropout and of the order of the data")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _converted(name, getattr(self, name), kind))
        self._check_ranges()
        changed = [
            option.name
            for option in dataclasses.fields(self)
            if getattr(self, option.name) != option.default
        ]
        self.check_effect(changed)
        self._check_combinations()

    def _check_ranges(self) -> None:
        for name in POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.lora_dropout >= 1:
            raise ValueError(f"lora_dropout must be below 1, got {self.lora_dropout}")
        if self.max_length < 3:
            raise ValueError(
                "max_length must be at least 3: a head foresees the second token, got "
                f"{self.max_length}"
            )
        if not 0 <= self.evaluation_share < 1:
            raise ValueError(f"evaluation_share must be in [0, 1), got {self.evaluation_share}")
        if self.bits not in (0, 4, 8):
            raise ValueError(f"bits must be 0, 4 or 8, got {self.bits}")

    def _check_combinations(self) -> None:
        for name in ("distill", "bits"):
            if getattr(self, name) and self.backbone_learns and not self.adapts:
                raise ValueError(
                    f"{name} needs an adapter, because the backbone's own weights must not change: "
                    "set lora_rank, or leave it out"
                )
        if self.optimizer == MUON and not self.backbone_learns:
            raise ValueError(
                "optimizer muon is for a backbone that learns: leave it out, or take method "
                "medusa-2"
            )
        if self.optimizer == MUON and self.adapts:
            raise ValueError(
                "optimizer muon moves the backbone's own matrices: set lora_rank 0, or leave it out"
            )

    def check_effect(self, names: Iterable[str]) -> None:
        """Check that options that a user has set have an effect.

        Args:
            names: names of the options that were set, even to their defaults.

        Raises:
            ValueError: an option has no effect beside the others; names it and the remedy.
        """
        options = {option.name: option for option in dataclasses.fields(self)}
        for name in names:
            option = options[name]
            if getattr(self, name) == option.default and not option.default:
                continue  # the option is switched off, so it contradicts nothing
            methods = option.metadata["methods"]
            if self.method not in methods:
                raise ValueError(
                    f"{name} has no effect with method {self.method}, only with "
                    f"{' and '.join(methods)}: leave it out, or take another method"
                )
            if name in ("lora_alpha", "lora_dropout") and not self.lora_rank:
                raise ValueError(
                    f"{name} has no effect with lora_rank 0, which makes no adapter: leave it out"
                )
            if name == "packing" and self.cache_hidden_states:
                raise ValueError(
                    "packing has no effect with cache_hidden_states, where a batch is made of "
                    "examples: leave out one of them (--no-packing)"
                )

    @property
    def stages(self) -> list[tuple[Stage, float]]:
        """Stages of the run in order, each with its number of epochs."""
        if not self.backbone_learns:
            return [("heads", self.epochs)]
        if self.method == "backbone":
            return [("backbone", self.epochs)]
        planned: list[tuple[Stage, float]] = [
            ("heads", self.heads_epochs),
            ("backbone", self.backbone_epochs),
            ("both", self.epochs),
        ]
        return [(stage, epochs) for stage, epochs in planned if epochs]

    @property
    def backbone_learns(self) -> bool:
        """Return True if the method trains the backbone."""
        return self.method in BACKBONE_METHODS

    @property
    def adapts(self) -> bool:
        """Return True if the backbone is trained through an adapter."""
        return self.backbone_learns and self.lora_rank > 0

    def heads_factor(self, stage: Stage) -> float:
        """Return the heads' learning rate as a multiple of the backbone's.

        Method "direct" gives both the same rate: it does not protect the backbone.
        """
        return 1.0 if self.method == "direct" and stage == "both" else self.heads_lr_factor

    def heads_weight(self) -> float:
        """Return lambda_0 of eq. 2; it is 1 for method "direct"."""
        return 1.0 if self.method == "direct" else self.lambda0

    @classmethod
    def read(cls, source: str | Path, besides: Collection[str] = ()) -> dict[str, Any]:
        """Return the options that a YAML file sets.

        Args:
            source: path of a YAML file, or name of a recipe that is part of the library.
            besides: names that the file may also set though they are not options of a recipe; their
                values are returned unchanged.

        Raises:
            FileNotFoundError: there is no such file or recipe.
            ValueError: the file is not a mapping, sets an unknown option, or an option to a value
                of the wrong type.
        """
        options = _read_yaml(source)
        kinds = get_type_hints(cls)
        for name, value in options.items():
            if name in kinds:
                try:
                    options[name] = _converted(name, value, kinds[name])
                except ValueError as error:
                    raise ValueError(f"{source}: {error}") from None
            elif name not in besides:
                names = sorted({*kinds, *besides})
                near = difflib.get_close_matches(name, names, 1, cutoff=0.8)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
                raise ValueError(f"{source}: unknown option {name}; {hint}")
        return options

    def to_json(self) -> dict[str, Any]:
        """Return all options by name."""
        return dataclasses.asdict(self)


def _read_yaml(source: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file or a shipped recipe; dashes in names become underscores."""
    shipped = {
        file.name.removesuffix(".yaml"): file
        for file in files(f"{__package__}.recipes").iterdir()
        if file.name.endswith(".yaml")
    }
    if str(source) in shipped:
        text = shipped[str(source)].read_text(encoding="utf-8")
    elif Path(source).is_file():
        text = Path(source).read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(
            f"no file {source}, and no recipe of that name: {', '.join(sorted(shipped))}"
        )
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{source} must hold options, such as 'method: medusa-2'")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _converted(name: str, value: Any, kind: Any) -> Any:
    """Return a value converted to the type of its option.

    YAML reads 5e-4 as a text, and a whole number for an option that is a float.

    Raises:
        ValueError: the value cannot be converted without loss.
    """
    choices = get_args(kind)
    if choices:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value}")
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is bool or isinstance(value, bool):
        raise ValueError(
            f"{name} must be {'true or false' if kind is bool else 'a number'}, got {value}"
        )
    try:
        converted = kind(value)
        fits = (
            math.isfinite(converted) if kind is float else kind is str or converted == float(value)
        )
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(
            f"{name} must be {'a whole number' if kind is int else 'a number'}, got {value}"
        )
    return converted
