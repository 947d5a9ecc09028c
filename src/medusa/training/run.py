"""A whole run: load, check, train stage by stage, save. What `medusa train` does.

A run is one folder. Its checkpoints lie in `stages`, its hidden states in `hidden-states`, and what it is of in
`run.json`, so that another run is never taken for this one; heads, adapter and report are written when it ends.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .. import adapters, storage
from ..heads import MedusaHeads
from ..model import new_heads
from ..pace import UNCALIBRATED
from ..provenance import provenance
from ..tree import CandidateTree
from .chats import Example, digest
from .data import Read, collator, packed, read_examples
from .hidden import collate_states, is_kept, keep
from .lora import adapt, save_adapter
from .recipe import Recipe, Stage
from .student import Student
from .trainer import StudentTrainer, arguments, processes

NODES = 16
"""Of the tree that is stored with new accuracies; `medusa calibrate` finds the one that fits a machine."""
RUN, REPORT = "run.json", "training.json"
"""What a folder's run is of, written when it begins, and what came of it, written last."""
Say = Callable[[str], None]


@dataclass
class Source:
    """What a run starts from.

    Attributes:
        model: folder or hub id of a base model, or of heads to go on with.
        data: what to learn from: a file, a folder, a dataset's name.
        evaluation: held-out data; by default a share of `data`.
        template: a chat template in place of the tokenizer's.
        skip_bad: pass over malformed records.
        limit: read at most so many records.
        split: of a dataset on the hub.
        loading: passed to transformers (revision, token, trust_remote_code, ...).
    """

    model: str
    data: str
    evaluation: str | None = None
    template: str | None = None
    skip_bad: bool = False
    limit: int | None = None
    split: str = "train"
    loading: dict[str, Any] = field(default_factory=dict)


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
    folder = Path(folder)
    torch.manual_seed(recipe.seed)
    if not processes().is_main_process:
        say = _nothing
    if merge and recipe.method == "medusa-1":
        raise ValueError("merge is for a backbone that learns, and method medusa-1 changes none: leave it out")
    for stage, epochs in recipe.stages:
        arguments(recipe, stage, epochs, folder, 1, evaluated=False)
    named = base_name(source.model)
    run: dict[str, Any] = {"recipe": recipe.to_json(), "model": source.model}
    _check_folder(folder, run)
    tokenizer = load_tokenizer(named, source.loading)
    config = AutoConfig.from_pretrained(named, **_of_hub(source.loading)).get_text_config()
    data = read_data(recipe, source, tokenizer, config, say)
    run["data"] = digest([*data.training, *data.evaluation])
    _check_folder(folder, run)
    if _is_finished(folder, merge):
        say(f"{folder} holds this run, finished: nothing is left to do")
        return folder
    base = load_base(named, recipe, source.loading)
    if merge and not recipe.bits and getattr(base, "quantization_method", None) is not None:
        raise ValueError(f"{named} is quantised, so an adapter cannot be merged into it: leave out --merge")
    if torch.accelerator.device_count() > processes().num_processes:
        say(f"{processes().num_processes} of {torch.accelerator.device_count()} devices used; torchrun starts more")
    heads = _heads(source.model, base, recipe)
    adapter = None
    if recipe.method != "medusa-1" and recipe.lora_rank:
        adapter = adapt(base, recipe)
    if recipe.gradient_checkpointing:
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable()
        base.enable_input_require_grads()
    student = Student(base, heads, recipe.decay)
    adapting = {name for name, parameter in base.named_parameters() if parameter.requires_grad} if adapter else None
    tree = CandidateTree.default(heads.config.num_heads, NODES)
    metrics: dict[str, Any] = {}
    perplexity = None
    state: dict[str, Tensor] = {}
    if processes().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RUN).write_text(json.dumps(run, indent=1) + "\n")
    for number, (stage, epochs) in enumerate(recipe.stages, start=1):
        passes = f"{epochs:g} epoch{'' if epochs == 1 else 's'}"
        say(f"stage {number} of {len(recipe.stages)}: {_STAGES[stage]}, {passes}")
        choose(student, stage, recipe, adapting)
        trainer = _trainer(student, recipe, stage, epochs, folder, number, data, tree, perplexity, say, report_to)
        done = folder / "stages" / f"{number}-{stage}" / "done.json"
        finished = done.is_file()
        trainer.accelerator.wait_for_everyone()
        if finished:
            trainer._load_from_checkpoint(str(done.parent / "end"))
            metrics = json.loads(done.read_text())
        else:
            trainer.go()
            metrics = trainer.last_evaluation()
            trainer.save_model(str(done.parent / "end"))
            if trainer.args.should_save:
                done.write_text(json.dumps(metrics, indent=1) + "\n")
        if metrics:
            perplexity = metrics["eval_perplexity"] - metrics["eval_perplexity_change"]
        state |= trainer.learnt()
    if trainer.args.should_save:
        _save(folder, named, source, student, adapter, state, metrics, recipe, merge, say)
    trainer.accelerator.wait_for_everyone()
    return folder


def _nothing(_: str) -> None:
    pass


_STAGES: dict[Stage, str] = {
    "heads": "the heads, on a frozen backbone",
    "backbone": "the backbone alone",
    "both": "backbone and heads together",
}


def load_tokenizer(name: str, loading: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer, with what it can be told of what the model is."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **_of_hub(loading))
    return tokenizer


def _of_hub(loading: dict[str, Any]) -> dict[str, Any]:
    return {each: loading[each] for each in ("revision", "token", "trust_remote_code") if each in loading}


def load_base(name: str, recipe: Recipe, loading: dict[str, Any]) -> PreTrainedModel:
    """The backbone as the recipe runs it: quantised, or in float32 or bfloat16 where its weights learn.

    Raises:
        ImportError: bits are asked for, and bitsandbytes is not installed.
    """
    options = dict(loading)
    learns = recipe.method != "medusa-1"
    if recipe.bits:
        options["quantization_config"] = _quantisation(recipe)
        if torch.cuda.is_available():
            options.setdefault("device_map", {"": int(os.environ.get("LOCAL_RANK", "0"))})
    options["dtype"] = "auto"
    if learns and not recipe.lora_rank:
        options["dtype"] = torch.float32  # 16 bits lose the small steps of a fine-tuning
    base = AutoModelForCausalLM.from_pretrained(name, **options)
    if learns and not recipe.bits and base.dtype == torch.float16:
        base = base.to(torch.bfloat16 if recipe.bf16 else torch.float32)  # gradients overflow float16
    base.requires_grad_(False)
    return base


def _quantisation(recipe: Recipe) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ImportError("bits: 4 and bits: 8 need bitsandbytes: pip install bitsandbytes") from None
    from transformers import BitsAndBytesConfig

    if recipe.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    computes = torch.bfloat16 if recipe.bf16 else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=computes
    )


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


def choose(student: Student, stage: Stage, recipe: Recipe, adapting: set[str] | None) -> None:
    """Say by `requires_grad` what learns in a stage; what learns is kept in float32.

    Args:
        adapting: names of the backbone's parameters that may learn; None are all.
    """
    learns = stage != "heads"
    for name, parameter in student.base.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(learns and (adapting is None or name in adapting))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    student.heads.float().requires_grad_(stage != "backbone")
    student.heads_learn = stage != "backbone"
    student.distilled = learns and recipe.distill


def rows(examples: Sequence[Example], recipe: Recipe) -> list[tuple[int, list[Example]]]:
    """Examples as numbered rows of a batch, several in one where the recipe packs."""
    lines = packed(examples, recipe.max_length) if recipe.packing else [[example] for example in examples]
    return list(enumerate(lines))


def collate_rows(pad: int) -> Any:
    """Numbered rows to a batch."""
    collate = collator(pad)

    def numbered(given: Sequence[tuple[int, list[Example]]]) -> dict[str, Tensor]:
        return {**collate([row for _, row in given]), "rows": torch.tensor([number for number, _ in given])}

    return numbered


def _trainer(
    student: Student,
    recipe: Recipe,
    stage: Stage,
    epochs: float,
    folder: Path,
    number: int,
    data: Data,
    tree: CandidateTree,
    perplexity: float | None,
    say: Say,
    report_to: str,
) -> StudentTrainer:
    learnt_from = _shown(student, recipe, folder / "hidden-states", data, say)
    place = folder / "stages" / f"{number}-{stage}"
    return StudentTrainer(
        student, recipe, stage, epochs, place, *learnt_from, tree, perplexity, say, report_to=report_to
    )


def _shown(
    student: Student, recipe: Recipe, states: Path, data: Data, say: Say
) -> tuple[Any, Sequence[Any], Sequence[Any]]:
    """The data as a trainer takes them: how a batch is made, what is learnt from, what is judged by."""
    if recipe.cache_hidden_states:
        training = _kept(student, data.training, states / "training", say)
        return collate_states, training, _kept(student, data.evaluation, states / "evaluation", say)
    alone = dataclasses.replace(recipe, packing=False)
    return collate_rows(0), rows(data.training, recipe), rows(data.evaluation, alone)


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


def base_name(model: str) -> str:
    """The base model of heads to go on with, or the model itself.

    Raises:
        FileNotFoundError: the model can only be a folder, and there is none.
    """
    folder = Path(model).expanduser()
    if folder.is_file() or (not folder.is_dir() and storage.is_path(model)):
        raise FileNotFoundError(f"no folder {model}: give a model's folder, or a hub id (owner/name)")
    return storage.base_name(folder) if folder.is_dir() and storage.is_native(folder) else model


def _heads(model: str, base: PreTrainedModel, recipe: Recipe) -> MedusaHeads:
    """The heads to go on with, or new ones.

    Raises:
        ValueError: the heads have a shape that the recipe does not say, or a backbone of their own.
    """
    folder = Path(model).expanduser()
    if not (folder.is_dir() and storage.is_native(folder)):
        return new_heads(base, recipe.num_heads, recipe.num_layers, recipe.own_lm_head, bias=True)
    if storage.adapter(folder) is not None:
        raise ValueError(f"{model} has an adapter; training goes on from merged models: medusa train ... --merge")
    heads = storage.read_heads(folder, base)
    standard = Recipe()
    for name in ("num_heads", "num_layers", "own_lm_head"):
        asked, there = getattr(recipe, name), getattr(heads.config, name)
        if asked not in (there, getattr(standard, name)):
            raise ValueError(f"{name} is {asked}, but the heads in {model} have {there}: leave it out")
    return heads


def _check_folder(folder: Path, run: dict[str, Any]) -> None:
    """Raises ValueError where the folder is not this run's, as far as that is known, and not free for it."""
    if not processes().is_main_process:  # the first may have begun to write there
        return
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


def _is_finished(folder: Path, merge: bool) -> bool:
    """Whether all is written; an adapter may still be merged."""
    return (folder / REPORT).is_file() and (not merge or (folder / storage.MERGED).is_dir())


def _save(
    folder: Path,
    base_name: str,
    source: Source,
    student: Student,
    adapter: Any,
    state: dict[str, Tensor],
    metrics: dict[str, Any],
    recipe: Recipe,
    merge: bool,
    say: Say,
) -> None:
    """The native folder, with the backbone's adapter or the backbone itself where it changed, and the report."""
    shape = student.heads.config
    heads = MedusaHeads(shape)
    heads.load_state_dict(_under("heads.", state) or student.heads.cpu().state_dict(), strict=False)
    changed = _under("base.", state)
    dtype = student.base.dtype if student.base.dtype.is_floating_point else torch.float32
    name, kept = os.path.relpath(base_name, folder) if Path(base_name).is_dir() else base_name, None
    if adapter is not None and changed:
        save_adapter(adapter, changed, folder / storage.ADAPTER)
        kept = storage.ADAPTER
    if changed and (merge or adapter is None):
        whole = AutoModelForCausalLM.from_pretrained(base_name, dtype="auto", **source.loading)
        if adapter is None:
            whole.load_state_dict(changed, strict=False)
        else:
            whole = adapters.apply(whole, folder / storage.ADAPTER)
            shutil.rmtree(folder / storage.ADAPTER)
        whole.save_pretrained(folder / storage.MERGED)
        load_tokenizer(base_name, source.loading).save_pretrained(folder / storage.MERGED)
        name, kept = storage.MERGED, None
    accuracies = [
        [metrics[f"eval_head_{head}_top_{rank}"] for rank in range(1, 6)]
        for head in range(1, shape.num_heads + 1)
        if metrics
    ]
    tree = CandidateTree.default(shape.num_heads, NODES)
    calibration = UNCALIBRATED
    if accuracies:
        tree = CandidateTree.from_accuracies(accuracies, NODES)
        calibration = dataclasses.replace(UNCALIBRATED, accuracies=accuracies)
    storage.write_heads(folder, heads.to(dtype), tree, name, calibration, kept)
    told = {"recipe": recipe.to_json(), "metrics": metrics, **provenance()}
    (folder / REPORT).write_text(json.dumps(told, indent=1) + "\n")
    say(f"heads{' and adapter' if kept else ' and backbone' if name == 'model' else ''} written to {folder}")


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _told(source: str, read: Read) -> str:
    told = [f"{len(read.examples)} examples, {sum(each.learnt for each in read.examples)} tokens to learn"]
    told += [f"{read.cut} cut at their end"] if read.cut else []
    told += [f"{read.empty} with nothing to learn"] if read.empty else []
    told += [f"{len(read.bad)} malformed, such as {read.bad[0]}"] if read.bad else []
    return f"{source}: {'; '.join(told)}"
