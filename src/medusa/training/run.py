"""A whole run: load, check, train stage by stage, save. What `medusa train` does.

A run is one folder. Its checkpoints lie in `stages`, its hidden states in `hidden-states`, and what it is of in
`run.json`, so that another run is never taken for this one; heads, adapter and report are written when it ends.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..tree import CandidateTree
from .arguments import arguments, processes
from .chats import Example, digest
from .data import Read, collate_rows, numbered_rows, read_examples
from .hidden import collate_states, is_kept, keep
from .learner import Learner
from .recipe import Recipe, Stage
from .saving import NODES, is_saved, save
from .source import Source
from .student import Student
from .trainer import StudentTrainer

RUN = "run.json"
"""What a folder's run is of; written when it begins."""
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


def train(
    recipe: Recipe,
    source: Source,
    folder: str | Path,
    *,
    merge: bool = False,
    report_to: str = "none",
    say: Say = print,
) -> Path:
    """Train heads (and the backbone, where the recipe says so), and write them to `folder`.

    A run that was stopped goes on from its last checkpoint when it is started again; one that is finished is left as
    it is.

    Args:
        merge: write the changed backbone as a model of its own, not as an adapter.
        report_to: where transformers logs to besides the terminal: tensorboard, wandb, ...
        say: told what happens, a line each.

    Returns:
        The folder, ready for `MedusaModel.from_pretrained`.

    Raises:
        ValueError: model, data, recipe and folder do not fit together; says how, before the first step.
        NotFiniteError: a loss became NaN or infinite.
    """
    folder, first = Path(folder), processes().is_main_process
    say = say if first else _nothing
    torch.manual_seed(recipe.seed)
    for stage, epochs in recipe.stages:  # wrong batch sizes and optimizers are found here
        arguments(recipe, stage, epochs, folder, 1, evaluated=False)
    run: dict[str, Any] = {"recipe": recipe.to_json(), "model": source.model}
    if first:  # others may find what it has begun to write
        _check_folder(folder, run)
    config = source.config()
    _check_merge(merge, recipe, config)
    data = read_data(recipe, source, source.tokenizer(), config.get_text_config(), say)
    run["data"] = digest([*data.training, *data.evaluation])
    if first:
        _check_folder(folder, run)
    if is_saved(folder, merge):
        say(f"{folder} holds this run, finished: nothing is left to do")
        return folder
    if torch.accelerator.device_count() > processes().num_processes:
        say(f"{processes().num_processes} of {torch.accelerator.device_count()} devices used; torchrun starts more")
    learner = Learner.of(source, recipe)
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RUN).write_text(json.dumps(run, indent=1) + "\n")
    learnt, metrics = _train(learner, recipe, folder, data, report_to, say)
    if first:
        written = save(folder, source, recipe, learner, learnt, metrics, merge)
        say(f"{written} written to {folder}")
    processes().wait_for_everyone()
    return folder


def _train(
    learner: Learner, recipe: Recipe, folder: Path, data: Data, report_to: str, say: Say
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """All stages in order; returns what has learnt, whole, and the last evaluation."""
    learnt: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    perplexity = None
    tree = CandidateTree.default(learner.student.heads.config.num_heads, NODES)
    for number, (stage, epochs) in enumerate(recipe.stages, start=1):
        say(f"stage {number} of {len(recipe.stages)}: {STAGES[stage]}, {epochs:g} epoch{'' if epochs == 1 else 's'}")
        learner.choose(stage, recipe)
        given = _given(learner.student, recipe, folder / "hidden-states", data, say)
        place = folder / "stages" / f"{number}-{stage}"
        trainer = StudentTrainer(
            learner.student, recipe, stage, epochs, place, *given, tree, perplexity, say, report_to=report_to
        )
        metrics = trainer.finish()
        if metrics:
            perplexity = metrics["eval_perplexity"] - metrics["eval_perplexity_change"]
        learnt |= trainer.learnt()
    return learnt, metrics


def _nothing(_: str) -> None:
    pass


# --- data


def read_data(
    recipe: Recipe, source: Source, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, say: Say = print
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
    read = read_examples(source.data, tokenizer, limit=source.limit, **options)
    say(_told(source.data, read))
    if source.evaluation is not None:
        held_out = read_examples(source.evaluation, tokenizer, **options)
        say(_told(source.evaluation, held_out))
        return Data(read.examples, held_out.examples)
    order = torch.randperm(len(read.examples), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    count = round(recipe.evaluation_share * len(order))
    kept = set(order[:count])
    say(f"{count} of them held out for evaluation" if count else "nothing is held out, so nothing is evaluated")
    training = [each for place, each in enumerate(read.examples) if place not in kept]
    return Data(training, [read.examples[place] for place in sorted(kept)])


def _told(source: str, read: Read) -> str:
    told = [f"{len(read.examples)} examples, {sum(each.learnt for each in read.examples)} tokens to learn"]
    told += [f"{read.cut} cut at their end"] if read.cut else []
    told += [f"{read.empty} with nothing to learn"] if read.empty else []
    told += [f"{len(read.bad)} malformed, such as {read.bad[0]}"] if read.bad else []
    return f"{source}: {'; '.join(told)}"


def _given(
    student: Student, recipe: Recipe, states: Path, data: Data, say: Say
) -> tuple[Any, Sequence[Any], Sequence[Any]]:
    """The data as a trainer takes them: how a batch is made, what is learnt from, what is judged by."""
    if recipe.cache_hidden_states:
        training = _kept(student, data.training, states / "training", say)
        return collate_states, training, _kept(student, data.evaluation, states / "evaluation", say)
    packed = recipe.max_length if recipe.packing else None
    return collate_rows(0), numbered_rows(data.training, packed), numbered_rows(data.evaluation)


def _kept(
    student: Student, examples: Sequence[Example], folder: Path, say: Say
) -> Sequence[tuple[int, Tensor, Tensor]]:
    """The examples' hidden states, computed by one process where it trains; the others wait for its files.

    A barrier would make them wait, too, but no longer than its time limit.
    """
    if not examples:
        return []
    if not processes().is_main_process:
        while not is_kept(folder):
            time.sleep(0.5)
    elif not is_kept(folder):
        if not hasattr(student.base, "hf_device_map"):
            student.to(processes().device)
        say(f"the backbone runs over {len(examples)} examples; their hidden states are kept in {folder}")
    terminal = Console(stderr=True)
    return keep(
        student,
        examples,
        folder,
        bar=lambda each: track(each, "hidden states", console=terminal, disable=not terminal.is_terminal),
    )


# --- checks before the first step


def _check_merge(merge: bool, recipe: Recipe, config: PreTrainedConfig) -> None:
    """Raises ValueError where no backbone can be written whole."""
    if merge and not recipe.backbone_learns:
        raise ValueError("merge is for a backbone that learns, and method medusa-1 changes none: leave it out")
    if merge and getattr(config, "quantization_config", None) is not None:
        raise ValueError("the base model is quantised, so an adapter cannot be merged into it: leave out --merge")


def _check_folder(folder: Path, run: dict[str, Any]) -> None:
    """Raises ValueError where the folder is not this run's, as far as that is known, and not free for it."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: take another --output")
    if (folder / RUN).is_file():
        there = json.loads((folder / RUN).read_text())
        other = [name for name, value in run["recipe"].items() if there["recipe"].get(name) != value]
        other += [name for name in run if name != "recipe" and there[name] != run[name]]
        if other:
            raise ValueError(f"{folder} holds a run with other {', '.join(other)}: take another --output, or delete it")
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something else: take another --output")
