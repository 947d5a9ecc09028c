"""`medusa distill`: let a model answer prompts, to train its heads on the answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .options import ModelOptions, length_option, split_option, temperature_option
from .parameters import argument, option

if TYPE_CHECKING:
    from rich.console import Console

    from ..training.answers_file import AnswersFile
    from ..training.conversations import Answerer, GenerationSettings
    from ..training.distill import DistillProgress


@dataclass(frozen=True, kw_only=True)
class AnswererOptions(ModelOptions):
    """Options that choose the model that answers."""

    model: str = argument(
        "Model that answers, as for generate; with --server, its name on the server", "MODEL"
    )


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """Options that name the prompts and choose how they are answered."""

    prompts: str | None = option(
        "Prompts, or chats whose user turns are used: a file, a folder, or a dataset on the hub",
        default=None,
        metavar="SOURCE",
    )
    self_prompts: int = option(
        "Number of conversations that the model begins with a question of its own, besides those "
        "of --prompts; repeated questions are left out",
        default=0,
        min=0,
    )
    output: Path = option(
        "File for the answers, as JSON lines; the same command resumes an interrupted run",
        "--output",
        "-o",
        metavar="FILE",
    )
    temperature: float = temperature_option(0.3)
    seed: int = option("Seed for sampling", default=0, min=0)
    max_new_tokens: int = length_option(1024)
    leave_out_cut: bool = option(
        "Leave out answers that reach --max-new-tokens, instead of marking them as cut",
        "--leave-out-cut",
        default=False,
    )
    self_talk: int = option(
        "Number of questions that the model asks itself after the prompt's own", default=0, min=0
    )
    batch_size: int = option("Number of conversations decoded at once", default=8, min=1)
    limit: int | None = option(
        "Maximum number of prompts read from --prompts; by default all", default=None, min=1
    )
    split: str = split_option()


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options for a server that answers in place of a model on this machine."""

    server: str | None = option(
        "Address of an OpenAI-compatible server, such as http://localhost:8000/v1 (key: "
        "OPENAI_API_KEY); by default the model runs here",
        default=None,
        metavar="URL",
    )
    in_flight: int = option("Maximum number of requests to the server at once", default=8, min=1)
    timeout: float = option(
        "Seconds in which the server must answer a request", default=600, min=0.1
    )


def distill(options: DistillationOptions, server: ServerOptions, model: AnswererOptions) -> None:
    """Let a model answer prompts; its heads are best trained on its own answers."""
    from rich.console import Console

    from ..training import distill as distillation
    from ..training.answers_file import answers_file
    from ..training.conversations import GenerationSettings
    from .progress import say, watching

    console = Console(stderr=True)
    settings = GenerationSettings(
        model.model,
        options.temperature,
        options.seed,
        options.max_new_tokens,
        options.self_talk,
        options.leave_out_cut,
    )
    # Check prompts and output before loading a model or sending requests to a server.
    if options.prompts is None and not options.self_prompts:
        raise ValueError("nothing to answer: pass --prompts, --self-prompts or both")
    if options.prompts is None and options.limit is not None:
        raise ValueError("--limit is the number of prompts read from --prompts, which is missing")
    seeds = distillation.self_prompts(options.self_prompts)
    if options.prompts is not None:
        seeds += distillation.read_seeds(options.prompts, options.limit, options.split)
    with answers_file(options.output, settings) as answers:
        engine = _engine(settings, options.batch_size, server, model)
        try:
            with watching(console, len(seeds)) as watch:
                progress = distillation.distill(engine, seeds, answers, watch)
        except KeyboardInterrupt:
            say(console, f"stopped; {_kept(answers)}. The same command goes on")
            raise
    _report(console, answers, progress)


def _engine(
    settings: GenerationSettings, batch_size: int, server: ServerOptions, model: AnswererOptions
) -> Answerer:
    """Return the answerer of the prompts: the server, or the model on this machine."""
    if server.server is not None:
        from ..training.server import ServerAnswerer

        return ServerAnswerer(
            server.server, settings, in_flight=server.in_flight, timeout=server.timeout
        )
    from ..training.answering import LocalAnswerer
    from .models import load

    return LocalAnswerer(*load(model), settings, batch_size)


def _report(console: Console, answers: AnswersFile, progress: DistillProgress) -> None:
    """Print the numbers of stored and omitted answers.

    Raises:
        ValueError: conversations were refused; the same command sends them again.
    """
    from .progress import say

    say(console, _kept(answers))
    if progress.cut:
        limit = f"{answers.settings.max_new_tokens} tokens or the model's positions"
        say(
            console,
            f'{progress.cut} of them end in an answer that was cut off ({limit}), marked "cut"',
        )
    if progress.left_out:
        say(
            console,
            f"{progress.left_out} left out, without an answer: {answers.path}.left-out says why",
        )
    if progress.refused:
        count = f"{len(progress.refused)} of {progress.total}"
        raise ValueError(f"{count} conversations were refused; the same command asks them again")


def _kept(answers: AnswersFile) -> str:
    return f"{len(answers.kept)} conversations in {answers.path}"
