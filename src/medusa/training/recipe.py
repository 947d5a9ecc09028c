"""What a run of training does: every option said once, with the paper's value (appendix B.2) as its default."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

Method = Literal["medusa-1", "medusa-2", "direct", "backbone"]
Schedule = Literal["constant", "sine"]
Stage = Literal["heads", "backbone", "both"]

MUON = "muon"
"""The one `optimizer` that transformers has no name for."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """How heads, and with Medusa-2 the backbone, are trained. Each field's `help` says what it is.

    Raises:
        ValueError: a value is out of its range, or two contradict each other; names the fields and the remedy.
    """

    method: Method = _option(  # noqa: RUF009 (a field)
        "medusa-1", "medusa-1 (heads alone), medusa-2 (backbone too); to compare: direct (no protection), backbone"
    )
    num_heads: int = _option(5, "new heads, where the model has none")
    num_layers: int = _option(1, "residual layers of new heads")
    own_lm_head: bool = _option(True, "new heads have lm_heads of their own")
    decay: float = _option(0.8, "lambda_k = decay^k of eq. 1")

    epochs: float = _option(2.0, "passes over the data: of the heads with medusa-1, of both together with medusa-2")
    heads_epochs: float = _option(0.0, "medusa-2: passes with the backbone frozen before (the first of two stages)")
    backbone_epochs: float = _option(0.0, "medusa-2: passes of the backbone alone between the two")
    lambda0: float = _option(0.2, "lambda_0 of eq. 2, the weight of the heads' loss")
    lambda0_schedule: Schedule = _option("constant", "constant, or sine: lambda_0 grows until the end")  # noqa: RUF009
    distill: bool = _option(False, "medusa-2: the backbone learns from itself as it was, not from the data's tokens")

    lora_rank: int = _option(32, "of the backbone's adapter; 0 trains all of the backbone's weights")
    lora_alpha: int = _option(16, "scale of the adapter, divided by its rank")
    lora_dropout: float = _option(0.05, "of the adapter's input")
    bits: int = _option(0, "load the backbone in 4 or 8 bits (bitsandbytes); 0 loads it as it is")
    gradient_checkpointing: bool = _option(False, "compute the backbone's activations again instead of keeping them")

    lr: float = _option(5e-4, "peak learning rate of the backbone")
    heads_lr_factor: float = _option(4.0, "the heads' peak, as a multiple of the backbone's")
    warmup_steps: int = _option(40, "steps in which the rate rises; it then falls along a cosine")
    weight_decay: float = _option(0.0, "of the optimizer")
    max_grad_norm: float = _option(1.0, "longer gradients are shortened to this")
    optimizer: str = _option(
        "auto",
        "a transformers optimizer; auto is 8-bit AdamW where bitsandbytes runs, else AdamW; muon takes Muon for the "
        "matrices of a backbone that was made with it",
    )
    batch_size: int = _option(64, "examples (rows, if packed) a step, over all devices")
    micro_batch_size: int = _option(4, "examples a device computes at once")
    max_length: int = _option(2048, "tokens an example keeps")
    packing: bool = _option(False, "several examples in a row, which do not see each other")
    bf16: bool = _option(False, "compute in bfloat16, keep what learns in float32")
    cache_hidden_states: bool = _option(False, "medusa-1: run the backbone once, and keep what the heads read on disk")

    evaluation_share: float = _option(0.02, "share of the data that is kept for evaluation, where no file is given")
    evaluate_every: int = _option(200, "steps between evaluations; 0 evaluates at the beginning and the end alone")
    save_every: int = _option(200, "steps between checkpoints, of which the last two are kept")
    log_every: int = _option(10, "steps between lines of the log")
    seed: int = _option(0, "of new weights, of dropout, and of the order of the data")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _converted(name, getattr(self, name), kind))
        for name in ("num_heads", "lr", "heads_lr_factor", "decay", "batch_size", "micro_batch_size", "log_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("lora_rank", "lora_dropout", "heads_epochs", "backbone_epochs", "lambda0", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.epochs <= 0:
            raise ValueError(f"epochs must be positive, got {self.epochs}")
        if self.max_length < 3:
            raise ValueError(f"max_length must be at least 3: a head foresees the second token, got {self.max_length}")
        if not 0 <= self.evaluation_share < 1:
            raise ValueError(f"evaluation_share must be in [0, 1), got {self.evaluation_share}")
        if self.bits not in (0, 4, 8):
            raise ValueError(f"bits must be 0, 4 or 8, got {self.bits}")
        if not self.backbone_learns and (self.distill or self.heads_epochs or self.backbone_epochs):
            raise ValueError("distill, heads_epochs and backbone_epochs are for method medusa-2: medusa-1 trains heads")
        if self.method in ("direct", "backbone") and (self.heads_epochs or self.distill):
            raise ValueError(f"heads_epochs and distill are for method medusa-2, not {self.method}: leave them out")
        if self.cache_hidden_states and self.backbone_learns:
            raise ValueError("cache_hidden_states is for method medusa-1: a backbone that learns changes its states")
        for name in ("distill", "bits"):
            if getattr(self, name) and self.backbone_learns and not self.adapts:
                raise ValueError(f"{name} needs an adapter: lora_rank 0 changes the very weights that it rests on")
        if self.optimizer == MUON and not self.backbone_learns:
            raise ValueError("optimizer muon is for a backbone that learns: leave it out, or take method medusa-2")
        if self.optimizer == MUON and self.adapts:
            raise ValueError("optimizer muon moves the backbone's own matrices: set lora_rank 0, or leave it out")

    @property
    def stages(self) -> list[tuple[Stage, float]]:
        """What is trained, and for how many epochs, in order."""
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
        """Whether any stage changes the backbone."""
        return self.method != "medusa-1"

    @property
    def adapts(self) -> bool:
        """Whether it does so by an adapter."""
        return self.backbone_learns and self.lora_rank > 0

    def heads_factor(self, stage: Stage) -> float:
        """The heads' learning rate over the backbone's; without protection they are one."""
        return 1.0 if self.method == "direct" and stage == "both" else self.heads_lr_factor

    def heads_weight(self) -> float:
        """lambda_0; without protection the heads' loss counts fully."""
        return 1.0 if self.method == "direct" else self.lambda0

    @classmethod
    def read(cls, source: str | Path, besides: Collection[str] = ()) -> dict[str, Any]:
        """The options a YAML file sets, or a recipe that comes with the library, by its name.

        Args:
            besides: names that the file may set and a recipe does not have; their values are given as they stand.

        Raises:
            FileNotFoundError: there is neither such a file nor such a recipe.
            ValueError: the file sets what is no option or to what it cannot be, or is not a mapping.
        """
        shipped = {each.name.removesuffix(".yaml"): each for each in files(f"{__package__}.recipes").iterdir()}
        if str(source) in shipped:
            text = shipped[str(source)].read_text(encoding="utf-8")
        elif Path(source).is_file():
            text = Path(source).read_text(encoding="utf-8")
        else:
            names = sorted(name for name, each in shipped.items() if each.name.endswith(".yaml"))
            raise FileNotFoundError(f"no file {source}, and no recipe of that name: {', '.join(names)}")
        try:
            told = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(told, dict):
            raise ValueError(f"{source} must hold options, such as 'method: medusa-2'")
        options = {str(name).replace("-", "_"): value for name, value in told.items()}
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
        return dataclasses.asdict(self)


def _converted(name: str, value: Any, kind: Any) -> Any:
    """A value as its field has it: YAML gives 5e-4 as a text, and whole numbers for fractions."""
    choices = get_args(kind)
    if choices:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value}")
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is bool or isinstance(value, bool):
        raise ValueError(f"{name} must be {'true or false' if kind is bool else 'a number'}, got {value}")
    try:
        converted = kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be {'a whole number' if kind is int else 'a number'}, got {value}") from None
    if kind is int and converted != float(value):
        raise ValueError(f"{name} must be a whole number, got {value}")
    return converted
