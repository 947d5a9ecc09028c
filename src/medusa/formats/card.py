"""The model card of heads: a `README.md` that is written from what the heads' folder holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ..core.schedule import UNCALIBRATED, Calibration, interpolated
from ..core.tree import CandidateTree
from ..files import Schema, parse_object, read_json
from . import native
from .description import Description
from .names import REPORT, TREE

CARD = "README.md"
RANKS = 5
"""Accuracies of each head that a card shows: top-1 to top-`RANKS`."""
DESCRIBED = ("heads", "layers", "lm_head", "weights", "draft vocabulary", "fits")
"""Rows of a folder's description that a card repeats."""
SETTINGS = """method heads_epochs backbone_epochs epochs lr heads_lr_factor decay overlap
    warmup_steps weight_decay optimizer batch_size max_length packing bf16 bits draft_vocab_size
    seed""".split()
"""Options of a recipe that a card shows."""
BACKBONE_SETTINGS = """lambda0 lambda0_schedule distill lora_rank lora_alpha
    lora_dropout""".split()
"""Options that it shows if the backbone was trained as well."""
FROZEN = "medusa-1"
"""The method of training that leaves the backbone unchanged."""


class TrainingReport(Schema):
    """The fields of `training.json` that a card repeats."""

    recipe: dict[str, Any]
    date: str | None = None
    device: str | None = None


class Prompts(Schema):
    """The prompts of a calibration."""

    count: int


class Speed(Schema):
    """Speed with the tree beside plain decoding.

    Attributes:
        acceleration_rate: tokens per step.
        speedup: tokens per second, divided by plain decoding's.
        prompts: number of prompts of a measurement.
    """

    acceleration_rate: float | None = None
    acceleration_rate_interval: list[float] | None = None
    speedup: float | None = None
    speedup_interval: list[float] | None = None
    prompts: int | None = None


class CalibrationFacts(Schema):
    """The fields of a calibration's metadata that a card repeats."""

    date: str | None = None
    device: str | None = None
    threads: int | None = None
    dtype: str | None = None
    torch: str | None = None
    compiled: bool | None = None
    batch_size: int | None = None
    prompts: Prompts | None = None
    predicted: Speed = Speed()
    measured: Speed = Speed()


@dataclass(frozen=True)
class Card:
    """The model card of heads in a native folder.

    Attributes:
        folder: the folder.
        name: the hub id under which the heads are published.
        licence: the fields `license`, `license_name` and `license_link` of the base model's card,
            as far as it has them.
        training: the report of the heads' training; None if there is none.
    """

    folder: Path
    name: str
    licence: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingReport | None = None

    def text(self) -> str:
        """Return the card: metadata for the hub, then sections in Markdown.

        Raises:
            ValueError: the folder holds no heads, or a broken file. The message names it.
        """
        config = native.read_config(self.folder) or native.HeadsFile()
        base = config.base_model_name_or_path or ""
        parts = [
            *_introduction(self.name, base, adapted=config.adapter is not None),
            *self._heads(base, config.base_model_revision),
            *([] if self.training is None else _training(self.training)),
            *self._calibration(),
        ]
        return f"---\n{self._metadata(base).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"

    def _metadata(self, base: str) -> ModelCardData:
        """Return the metadata by which the hub files the heads."""
        return ModelCardData(
            base_model=base,
            base_model_relation="adapter",
            library_name="medusa",
            pipeline_tag="text-generation",
            tags=["medusa", "speculative-decoding"],
            **self.licence,
        )

    def _heads(self, base: str, revision: str | None) -> Iterator[str]:
        """Yield the section about the heads and their base model."""
        at = "" if revision is None else f", revision `{revision}`"
        described = dict(Description.of(self.folder).rows())
        yield "## Heads"
        yield _table(
            {
                "base model": f"[{base}](https://huggingface.co/{base}){at}",
                "licence of the base model": self._licence_name(),
                **{label: described[label] for label in DESCRIBED if label in described},
            }
        )

    def _licence_name(self) -> str:
        name = self.licence.get("license_name") or self.licence.get("license")
        link = self.licence.get("license_link", "")
        if name is None:
            return "not known; see the base model"
        return f"[{name}]({link})" if link.startswith("https://") else name

    def _calibration(self) -> Iterator[str]:
        """Yield the sections about what was measured, as far as the tree file tells it."""
        found = native.read_tree(self.folder)
        if found is None:
            return
        tree, calibration = found
        place = f"{self.folder / TREE}: made"
        facts = parse_object(dict(calibration.made), CalibrationFacts, place, "the whole object")
        if calibration is not UNCALIBRATED:
            heads = Description.of(self.folder).stored.num_heads
            yield from _accuracies(calibration.accuracies[:heads], facts)
        yield from _tree(tree, calibration, facts)


def read_training(folder: Path) -> TrainingReport | None:
    """Return the report of the training that wrote a folder; None if there is none.

    Raises:
        ValueError: the report is broken. The message names the field.
    """
    return read_json(folder / REPORT, TrainingReport) if (folder / REPORT).is_file() else None


def _introduction(name: str, base: str, adapted: bool) -> Iterator[str]:
    """Yield the title, what the heads are for, and how to use them."""
    model = "this model with the adapter in this repository" if adapted else "this model"
    yield f"# {name.split('/')[-1]}"
    yield (
        f"[Medusa](https://arxiv.org/abs/2401.10774) heads for `{base}`. They propose the next "
        "tokens, and the model verifies all proposals in one forward pass, so it writes several "
        f"tokens per step. Greedy decoding gives the text that {model} gives alone."
    )
    yield "## Use"
    yield "```console\n$ pip install medusa-decoding\n```"
    yield f"""```python
from medusa import MedusaModel
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = MedusaModel.from_pretrained("{name}")  # loads the base model as well
inputs = tokenizer("Once upon a time", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```"""


def _training(report: TrainingReport) -> Iterator[str]:
    """Yield the section about the training."""
    recipe = report.recipe
    names = SETTINGS if recipe.get("method") == FROZEN else SETTINGS + BACKBONE_SETTINGS
    made = ", ".join(text for text in (report.date, report.device) if text is not None)
    yield "## Training"
    yield f"Options of `medusa train`{f' ({made})' if made else ''}, without those that are off:"
    yield _table({f"`{name}`": str(recipe[name]) for name in names if recipe.get(name)})


def _accuracies(accuracies: Any, facts: CalibrationFacts) -> Iterator[str]:
    """Yield the section about the heads' accuracies."""
    on = f", on answers to {facts.prompts.count} prompts" if facts.prompts is not None else ""
    ranks = min(RANKS, *map(len, accuracies))
    yield "## Accuracy"
    yield f"Share of positions whose token is among a head's most probable ones{on}:"
    titles = _row("head", *(f"top-{rank}" for rank in range(1, ranks + 1)))
    rows = [
        _row(str(head), *(f"{share:.1%}" for share in row[:ranks]))
        for head, row in enumerate(accuracies, start=1)
    ]
    yield "\n".join([titles, "|---" * (1 + ranks) + "|", *rows])


def _tree(tree: CandidateTree, calibration: Calibration, facts: CalibrationFacts) -> Iterator[str]:
    """Yield the section about the candidate tree, and its speed where that was measured."""
    yield "## Tree and speed"
    size = f"{len(tree)} nodes, depth {tree.max_depth}"
    rows = {"tree": size if tree.max_depth else "none: plain decoding was faster than any tree"}
    if not calibration.made:
        yield _table(rows)
        yield "The speed was not measured. `medusa calibrate` finds the fastest tree on a machine."
        return
    rows |= {
        "calibrated on": ", ".join(_machine(facts)),
        "time of a plain step": f"{calibration.latency[1]:.2f} ms",
        "time of a step with the tree": f"{interpolated(calibration.latency, len(tree)):.2f} ms",
        "tokens per step": _figure("acceleration_rate", facts),
        "tokens per second / plain decoding": _figure("speedup", facts),
    }
    yield _table({label: text for label, text in rows.items() if text})
    yield "On another machine another tree may be faster: `medusa calibrate` finds it."


def _machine(facts: CalibrationFacts) -> Iterator[str]:
    """Yield where and how the tree was calibrated, in parts."""
    if facts.device is not None:
        yield facts.device
    if facts.threads is not None:
        yield f"{facts.threads} CPU threads"
    if facts.dtype is not None:
        yield facts.dtype
    if facts.compiled:
        yield "compiled"
    if facts.batch_size is not None:
        yield f"batch size {facts.batch_size}"
    if facts.torch is not None:
        yield f"torch {facts.torch}"
    if facts.date is not None:
        yield facts.date


def _figure(name: str, facts: CalibrationFacts) -> str:
    """Return a figure of the tree's speed, measured or else predicted; "" if neither is known."""
    measured, predicted = getattr(facts.measured, name), getattr(facts.predicted, name)
    if measured is None:
        return "" if predicted is None else f"{predicted:.2f}, predicted"
    interval = getattr(facts.measured, f"{name}_interval")
    spread = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
    on = "" if facts.measured.prompts is None else f" on {facts.measured.prompts} other prompts"
    return f"{measured:.2f}{spread}, measured{on}"


def _table(rows: Mapping[str, str]) -> str:
    """Return a Markdown table of labels and texts."""
    return "\n".join(["| | |", "|---|---|", *(_row(*row) for row in rows.items())])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
