"""A training run: check, load, train stage by stage, save. The command `medusa train` calls this.

A run has one output folder, which one process writes at a time. The folder holds checkpoints in
`stages`, cached hidden states in `hidden-states`, and the run manifest `run.json`. Heads, adapter
and report are written at the end.
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
from .arguments import adamw_name, count_steps, processes
from .checks import MANIFEST, check_disk, check_folder, check_merge, check_options, check_output
from .hidden import ExampleStates, cache_bytes, cached_states, collate_states
from .plan import plan
from .progress import progress
from .recipe import Recipe, Stage
from .saving import NODES, is_saved, save
from .source import Source
from .staged_model import StagedModel
from .trainer import MedusaTrainer, StageData
from .training_model import TrainingModel
from .vocabulary import frequent_tokens

STAGE_NAMES: dict[Stage, str] = {
    "heads": "the heads, on a frozen backbone",
    "backbone": "the backbone alone",
    "both": "backbone and heads together",
}
Say = Callable[[str], None]
"""Function that prints a line."""


@dataclass(frozen=True)
class RunData:
    """The examples of a run.

    Attributes:
        training: examples to train on.
        evaluation: examples to evaluate on.
    """

    training: list[Example]
    evaluation: list[Example]


@dataclass(frozen=True)
class _Folders:
    """The folders of a run.

    Attributes:
        output: folder of results and checkpoints.
        states: folder of cached hidden states, which several runs can share.
    """

    output: Path
    states: Path

    def stage(self, number: int, stage: Stage) -> Path:
        """Return the folder of a stage's checkpoints."""
        return self.output / "stages" / f"{number}-{stage}"


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
    """Train heads, and the backbone if the recipe says so, and write them to `folder`.

    A run that was stopped continues from its last checkpoint when it is started again. A finished
    run is not repeated.

    Args:
        recipe: what to train and how.
        source: model and data.
        folder: output folder.
        merge: write the trained backbone as a whole model, not as an adapter.
        report_to: transformers integration to log to: tensorboard, wandb, ...
        hidden_states: cache of hidden states that several runs can share; sets the recipe's
            `cache_hidden_states`, which by default caches them in `folder`.
        say: prints a line.

    Returns:
        `folder`, which `MedusaModel.from_pretrained` can load.

    Raises:
        ImportError: a package is missing.
        ValueError: model, data, recipe and folder do not fit together, or another process writes to
            the folder; raised before the first step.
        NotFiniteError: a loss became NaN or infinite.
    """
    output, is_main = Path(folder), processes().is_main_process
    if hidden_states is not None:
        recipe = dataclasses.replace(recipe, cache_hidden_states=True)
    folders = _Folders(
        output, output / "hidden-states" if hidden_states is None else Path(hidden_states)
    )
    check_options(recipe, source, output, report_to)
    if is_main:
        check_output(output, "--output")
        check_output(folders.states, "--hidden-states")
    with locked(output) if is_main else nullcontext():
        _run(recipe, source, folders, merge, report_to, say if is_main else _say_nothing)
    return output


def _run(
    recipe: Recipe, source: Source, folders: _Folders, merge: bool, report_to: str, say: Say
) -> None:
    """Do the work of `train`, in a folder that is locked."""
    output, is_main = folders.output, processes().is_main_process
    torch.manual_seed(recipe.seed)
    manifest: dict[str, Any] = {"recipe": recipe.to_json(), "model": source.model}
    if is_main:  # other processes may already see what this one has begun to write
        check_folder(output, manifest)
    config = source.config()
    check_merge(merge, recipe, config)
    data = read_data(recipe, source, source.tokenizer(), config.get_text_config(), say)
    manifest["data"] = digest([*data.training, *data.evaluation])
    if is_main:
        check_folder(output, manifest)
    if is_saved(output, merge):
        say(f"{output} holds this run, finished: nothing is left to do")
        return
    _say_plan(recipe, data, say)
    say(f"loading {source.base}")
    staged = StagedModel.load(source, recipe)
    if is_main:
        if not (output / MANIFEST).exists():
            check_disk(_disk_needs(staged, recipe, folders, data, merge))
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / MANIFEST, manifest, indent=1)
    weights, metrics = _train_stages(staged, recipe, folders, data, report_to, say)
    if is_main:
        say("writing the backbone and the heads" if merge else "writing the heads")
        written = save(output, source, recipe, staged, weights, metrics, merge)
        say(f"{written} written to {output}")
    processes().wait_for_everyone()


def _train_stages(
    staged: StagedModel, recipe: Recipe, folders: _Folders, data: RunData, report_to: str, say: Say
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train all stages in order; return the final trainable weights and metrics."""
    weights: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    perplexity = None
    tree = CandidateTree.default(staged.model.heads.config.num_heads, NODES)
    if recipe.draft_vocab_size:
        _restrict_vocabulary(staged.model, data, recipe.draft_vocab_size, say)
    for number, (stage, epochs) in enumerate(recipe.stages, start=1):
        say(f"stage {number} of {len(recipe.stages)}: {_describe(stage, epochs)}")
        staged.set_stage(stage, recipe)
        trainer = MedusaTrainer(
            staged.model,
            recipe,
            stage,
            epochs,
            folders.stage(number, stage),
            _stage_data(staged.model, recipe, folders.states, data, say),
            tree,
            perplexity,
            say,
            report_to=report_to,
        )
        metrics = trainer.run_stage()
        if metrics:  # later stages compare with the model before the first
            perplexity = metrics["eval_perplexity"] - metrics["eval_perplexity_change"]
        weights |= trainer.trained_weights()
    return weights, metrics


def _restrict_vocabulary(model: TrainingModel, data: RunData, size: int, say: Say) -> None:
    """Restrict the heads to the most frequent tokens of the training data."""
    tokens = frequent_tokens((each.labels[1:] for each in data.training), size)
    model.restrict_vocabulary(tokens)
    say(
        f"the heads learn and propose {len(tokens):,} of {model.heads.config.vocab_size:,} tokens, "
        "the most frequent ones in the data"
    )


def _describe(stage: Stage, epochs: float) -> str:
    return f"{STAGE_NAMES[stage]}, {epochs:g} epoch{'' if epochs == 1 else 's'}"


def _say_plan(recipe: Recipe, data: RunData, say: Say) -> None:
    """Print what every stage will do, and how many devices are used; the backbone is not needed."""
    rows = len(numbered_rows(data.training, _row_length(recipe)))
    tokens = sum(example.learnt for example in data.training)
    for stage, epochs in recipe.stages:
        first, *rest = plan(recipe, stage, epochs, rows, tokens)
        say(f"{_describe(stage, epochs)}: {first}")
        for line in rest:
            say(line)
    devices, used = torch.accelerator.device_count(), processes().num_processes
    if devices > used:
        say(f"{used} of {devices} devices used; torchrun starts more")


def _disk_needs(
    staged: StagedModel, recipe: Recipe, folders: _Folders, data: RunData, merge: bool
) -> dict[str, tuple[Path, int]]:
    """Return the folder and the least number of bytes of each kind of file that the run writes."""
    model = staged.model
    itemsize = model.base.dtype.itemsize
    heads = sum(parameter.numel() for parameter in model.heads.parameters())
    needs = {
        "checkpoints": (folders.output, _checkpoint_bytes(staged, recipe, data)),
        "result": (folders.output, heads * itemsize),
    }
    if recipe.cache_hidden_states:
        cached = cache_bytes(model, [*data.training, *data.evaluation])
        needs["hidden states"] = folders.states, cached
    if recipe.backbone_learns and (merge or not recipe.adapts):
        backbone = sum(parameter.numel() for parameter in model.base.parameters())
        needs["backbone"] = folders.output, backbone * itemsize
    return needs


def _checkpoint_bytes(staged: StagedModel, recipe: Recipe, data: RunData) -> int:
    """Return the size of all checkpoints of a stage, and of the weights at its end, in bytes."""
    trained = sum(
        parameter.numel()
        for name, parameter in staged.model.base.named_parameters()
        if name in staged.trainable
    )
    if recipe.method != "backbone":
        trained += sum(parameter.numel() for parameter in staged.model.heads.parameters())
    checkpoints = 0
    if recipe.save_every:
        rows = len(numbered_rows(data.training, _row_length(recipe)))
        steps = max(
            count_steps(recipe, rows, epochs, recipe.batch_size) for _, epochs in recipe.stages
        )
        # Two are kept, and the oldest is deleted only when the third is complete.
        checkpoints = min(3, -(-steps // recipe.save_every))
    moments = 2 * 4 if recipe.optimizer in ("auto", "adamw_torch") else 0
    if recipe.optimizer == "auto" and "8bit" in adamw_name():
        moments = 2
    return trained * (checkpoints * (4 + moments) + 4)


def _say_nothing(_: str) -> None:
    pass


# --- data


def read_data(
    recipe: Recipe,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    say: Say = print,
) -> RunData:
    """Return the examples of a run: its evaluation data, or a share that is held out of its data.

    Args:
        recipe: recipe of the run.
        source: the data to read.
        tokenizer: tokenizer of the model.
        config: configuration of the model's text part.
        say: prints a line.

    Raises:
        ValueError: the data do not fit the model, or hold nothing to train on.
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
    read = _read(source.data, tokenizer, source.limit, say, options)
    if source.evaluation is not None:
        held_out = _read(source.evaluation, tokenizer, None, say, options)
        return RunData(read.examples, held_out.examples)
    return _hold_out(read.examples, recipe, say)


def _read(
    data: str,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    say: Say,
    options: dict[str, Any],
) -> ReadExamples:
    """Read the examples of one source, with progress and a line about the result."""
    shown = processes().is_main_process
    with progress(f"reading {data}", limit, "records", say, shown) as advance:
        read = read_examples(data, tokenizer, limit=limit, advance=advance, **options)
    tokens = sum(example.learnt for example in read.examples)
    parts = [f"{len(read.examples)} examples, {tokens} tokens to learn"]
    parts += [f"{read.cut} cut at their end"] if read.cut else []
    parts += [f"{read.empty} with nothing to learn"] if read.empty else []
    parts += [f"{len(read.bad)} malformed, such as {read.bad[0]}"] if read.bad else []
    say(f"{data}: {'; '.join(parts)}")
    return read


def _hold_out(examples: list[Example], recipe: Recipe, say: Say) -> RunData:
    """Split off the recipe's share of examples for evaluation, chosen at random by its seed."""
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(len(examples), generator=generator).tolist()
    count = round(recipe.evaluation_share * len(order))
    held_out = set(order[:count])
    say(
        f"{count} of them held out for evaluation"
        if count
        else "nothing is held out, so nothing is evaluated"
    )
    training = [example for place, example in enumerate(examples) if place not in held_out]
    return RunData(training, [examples[place] for place in sorted(held_out)])


def _row_length(recipe: Recipe) -> int | None:
    """Return the number of tokens in a packed row; None without packing."""
    return recipe.max_length if recipe.packing else None


def _stage_data(
    model: TrainingModel, recipe: Recipe, states: Path, data: RunData, say: Say
) -> StageData:
    """Return the data of a stage: rows of examples, or cached hidden states."""
    if recipe.cache_hidden_states:
        return StageData(
            collate_states,
            _cached(model, data.training, states, say),
            _cached(model, data.evaluation, states, say),
        )
    return StageData(
        collate_rows(0),
        numbered_rows(data.training, _row_length(recipe)),
        numbered_rows(data.evaluation),
    )


def _cached(
    model: TrainingModel, examples: Sequence[Example], states: Path, say: Say
) -> Sequence[ExampleStates]:
    """Return the examples' hidden states; the main process computes them, the others wait."""
    if not examples:
        return []
    if not hasattr(model.base, "hf_device_map"):
        model.to(processes().device)
    is_main = processes().is_main_process
    return cached_states(model, examples, states, say=say if is_main else None, computes=is_main)
