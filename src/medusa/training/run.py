"""A whole run: check, load, train stage by stage, save. What `medusa train` does.

A run is one folder, which one process writes to at a time. Its checkpoints lie in `stages`, its
hidden states in `hidden-states`, and what tells it from another run in `run.json`; heads, adapter
and report are written when it ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..core.tree import CandidateTree
from ..data.chats import Example, digest
from ..data.examples import ReadExamples, collate_rows, numbered_rows, read_examples
from ..files import locked, write_json
from .arguments import adamw, count_steps, processes
from .checks import RUN, check_disk, check_folder, check_merge, check_options, check_writable
from .hidden import collate_states, keep, kept_bytes
from .learner import Learner
from .plan import plan
from .progress import progress
from .recipe import Recipe, Stage
from .saving import NODES, is_saved, save
from .source import Source
from .student import Student
from .trainer import StudentTrainer
from .vocabulary import occurring

STAGES: dict[Stage, str] = {
    "heads": "the heads, on a frozen backbone",
    "backbone": "the backbone alone",
    "both": "backbone and heads together",
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Data:
    """Examples to learn from and examples to judge by."""

    training: list[Example]
    evaluation: list[Example]


@dataclass(frozen=True)
class _Places:
    """Where a run keeps what it goes on from: hidden states, and the checkpoints of its stages."""

    folder: Path
    states: Path

    def stage(self, number: int, stage: Stage) -> Path:
        return self.folder / "stages" / f"{number}-{stage}"


def train(
    recipe: Recipe,
    source: Source,
    folder: str | Path,
    *,
    merge: bool = False,
    report_to: str = "none",
    hidden_states: str | Path | None = None,
    say: Say = print,
) -> Path:
    """Train heads (and the backbone, where the recipe says so), and write them to `folder`.

    A run that was stopped goes on from its last checkpoint when it is started again; one that is
    finished is left as it is.

    Args:
        merge: write the changed backbone as a model of its own, not as an adapter.
        report_to: where transformers logs to besides the terminal: tensorboard, wandb, ...
        hidden_states: folder of hidden states that several runs share; sets the recipe's
            `cache_hidden_states`, which alone keeps them in `folder`.
        say: told what happens, a line each.

    Returns:
        The folder, ready for `MedusaModel.from_pretrained`.

    Raises:
        ImportError: a package is missing.
        ValueError: model, data, recipe and folder do not fit together, or another process writes to
            the folder; says how, before the first step.
        NotFiniteError: a loss became NaN or infinite.
    """
    folder, first = Path(folder), processes().is_main_process
    if hidden_states is not None:
        recipe = dataclasses.replace(recipe, cache_hidden_states=True)
    places = _Places(
        folder, folder / "hidden-states" if hidden_states is None else Path(hidden_states)
    )
    check_options(recipe, source, folder, report_to)
    if first:
        check_writable(folder, "--output")
        check_writable(places.states, "--hidden-states")
    with locked(folder) if first else nullcontext():
        _run(recipe, source, places, merge, report_to, say if first else _nothing)
    return folder


def _run(
    recipe: Recipe, source: Source, places: _Places, merge: bool, report_to: str, say: Say
) -> None:
    """`train`, in a folder that nobody else writes to."""
    folder, first = places.folder, processes().is_main_process
    torch.manual_seed(recipe.seed)
    run: dict[str, Any] = {"recipe": recipe.to_json(), "model": source.model}
    if first:  # others may find what it has begun to write
        check_folder(folder, run)
    config = source.config()
    check_merge(merge, recipe, config)
    data = read_data(recipe, source, source.tokenizer(), config.get_text_config(), say)
    run["data"] = digest([*data.training, *data.evaluation])
    if first:
        check_folder(folder, run)
    if is_saved(folder, merge):
        say(f"{folder} holds this run, finished: nothing is left to do")
        return
    _tell_plan(recipe, data, say)
    if torch.accelerator.device_count() > processes().num_processes:
        say(
            f"{processes().num_processes} of {torch.accelerator.device_count()} devices used; "
            "torchrun starts more"
        )
    say(f"loading {source.base}")
    learner = Learner.of(source, recipe)
    if first:
        if not (folder / RUN).exists():
            check_disk(_needs(learner, recipe, places, data, merge))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RUN, run, indent=1)
    learnt, metrics = _train(learner, recipe, places, data, report_to, say)
    if first:
        say("writing the backbone and the heads" if merge else "writing the heads")
        written = save(folder, source, recipe, learner, learnt, metrics, merge)
        say(f"{written} written to {folder}")
    processes().wait_for_everyone()


def _train(
    learner: Learner, recipe: Recipe, places: _Places, data: Data, report_to: str, say: Say
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """All stages in order; returns what has learnt, whole, and the last evaluation."""
    learnt: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    perplexity = None
    tree = CandidateTree.default(learner.student.heads.config.num_heads, NODES)
    if recipe.head_vocabulary == "data":
        _restrict(learner.student, data, say)
    for number, (stage, epochs) in enumerate(recipe.stages, start=1):
        say(f"stage {number} of {len(recipe.stages)}: {_described(stage, epochs)}")
        learner.choose(stage, recipe)
        given = _given(learner.student, recipe, places.states, data, say)
        place = places.stage(number, stage)
        trainer = StudentTrainer(
            learner.student,
            recipe,
            stage,
            epochs,
            place,
            *given,
            tree,
            perplexity,
            say,
            report_to=report_to,
        )
        metrics = trainer.finish()
        if metrics:
            perplexity = metrics["eval_perplexity"] - metrics["eval_perplexity_change"]
        learnt |= trainer.learnt()
    return learnt, metrics


def _restrict(student: Student, data: Data, say: Say) -> None:
    """Have the heads' loss taken over the tokens that the data hold."""
    tokens = occurring([*data.training, *data.evaluation])
    student.restrict(tokens)
    say(
        f"the heads' loss is over the {len(tokens):,} of {student.heads.config.vocab_size:,} "
        "tokens that occur in the "
        "data; evaluations are over all"
    )


def _described(stage: Stage, epochs: float) -> str:
    return f"{STAGES[stage]}, {epochs:g} epoch{'' if epochs == 1 else 's'}"


def _tell_plan(recipe: Recipe, data: Data, say: Say) -> None:
    """Say what every stage will do, before the backbone is loaded."""
    rows = len(numbered_rows(data.training, _packed(recipe)))
    tokens = sum(each.learnt for each in data.training)
    for stage, epochs in recipe.stages:
        first, *rest = plan(recipe, stage, epochs, rows, tokens)
        say(f"{_described(stage, epochs)}: {first}")
        for line in rest:
            say(line)


def _needs(
    learner: Learner, recipe: Recipe, places: _Places, data: Data, merge: bool
) -> dict[str, tuple[Path, int]]:
    """What the run will write at least, where, and how many bytes."""
    student = learner.student
    backbone = sum(
        each.numel() for name, each in student.base.named_parameters() if name in learner.changing
    )
    heads = sum(each.numel() for each in student.heads.parameters())
    learning = backbone + (heads if recipe.method != "backbone" else 0)
    rows = len(numbered_rows(data.training, _packed(recipe)))
    kept = 0
    if recipe.save_every:
        steps = max(
            count_steps(recipe, rows, epochs, recipe.batch_size) for _, epochs in recipe.stages
        )
        kept = min(
            3, -(-steps // recipe.save_every)
        )  # the oldest is deleted when the third is complete
    moments = 2 * 4 if recipe.optimizer in ("auto", "adamw_torch") else 0
    if recipe.optimizer == "auto" and "8bit" in adamw():
        moments = 2
    needs = {
        "checkpoints": (places.folder, learning * (kept * (4 + moments) + 4)),
        "result": (places.folder, heads * student.base.dtype.itemsize),
    }
    if recipe.cache_hidden_states:
        needs["hidden states"] = (
            places.states,
            kept_bytes(student, [*data.training, *data.evaluation]),
        )
    if recipe.backbone_learns and (merge or not recipe.adapts):
        whole = (
            sum(each.numel() for each in student.base.parameters()) * student.base.dtype.itemsize
        )
        needs["backbone"] = places.folder, whole
    return needs


def _nothing(_: str) -> None:
    pass


# --- data


def read_data(
    recipe: Recipe,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    say: Say = print,
) -> Data:
    """Examples to learn from, and others to judge by.

    Args:
        config: of the model's text.

    Raises:
        ValueError: the data do not fit the model, or hold nothing to learn.
    """
    longest = getattr(config, "max_position_embeddings", None) or recipe.max_length
    options = {
        "max_length": min(recipe.max_length, longest),
        "vocab_size": config.vocab_size,
        "skip_bad": source.skip_bad,
        "template": source.template,
        "split": source.split,
        "stops": source.stops(),
    }
    shown = processes().is_main_process
    with progress(f"reading {source.data}", source.limit, "records", say, shown) as advance:
        read = read_examples(source.data, tokenizer, limit=source.limit, advance=advance, **options)
    say(_told(source.data, read))
    if source.evaluation is not None:
        with progress(f"reading {source.evaluation}", None, "records", say, shown) as advance:
            held_out = read_examples(source.evaluation, tokenizer, advance=advance, **options)
        say(_told(source.evaluation, held_out))
        return Data(read.examples, held_out.examples)
    order = torch.randperm(
        len(read.examples), generator=torch.Generator().manual_seed(recipe.seed)
    ).tolist()
    count = round(recipe.evaluation_share * len(order))
    kept = set(order[:count])
    say(
        f"{count} of them held out for evaluation"
        if count
        else "nothing is held out, so nothing is evaluated"
    )
    training = [each for place, each in enumerate(read.examples) if place not in kept]
    return Data(training, [read.examples[place] for place in sorted(kept)])


def _told(source: str, read: ReadExamples) -> str:
    told = [
        f"{len(read.examples)} examples, {sum(each.learnt for each in read.examples)} tokens to "
        "learn"
    ]
    told += [f"{read.cut} cut at their end"] if read.cut else []
    told += [f"{read.empty} with nothing to learn"] if read.empty else []
    told += [f"{len(read.bad)} malformed, such as {read.bad[0]}"] if read.bad else []
    return f"{source}: {'; '.join(told)}"


def _packed(recipe: Recipe) -> int | None:
    """Tokens of a packed row; None where every example is a row."""
    return recipe.max_length if recipe.packing else None


def _given(
    student: Student, recipe: Recipe, states: Path, data: Data, say: Say
) -> tuple[Any, Sequence[Any], Sequence[Any]]:
    """The data as a trainer takes them: how a batch is made, what is learnt from, what is judged
    by.
    """
    if recipe.cache_hidden_states:
        training = _kept(student, data.training, states, say)
        return collate_states, training, _kept(student, data.evaluation, states, say)
    return (
        collate_rows(0),
        numbered_rows(data.training, _packed(recipe)),
        numbered_rows(data.evaluation),
    )


def _kept(
    student: Student, examples: Sequence[Example], place: Path, say: Say
) -> Sequence[tuple[int, Tensor, Tensor]]:
    """The examples' hidden states, which one process computes where it trains; the others wait for
    its files.
    """
    if not examples:
        return []
    if not hasattr(student.base, "hf_device_map"):
        student.to(processes().device)
    first = processes().is_main_process
    return keep(student, examples, place, say=say if first else None, computes=first)
