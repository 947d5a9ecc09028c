"""The command line: `medusa demo`, `generate`, `chat`, `calibrate`, `train`, `distill` and
`tree`.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Optional

import typer

from .flags import with_recipe
from .options import (
    MOST_TOKENS,
    Accept,
    Acceptance,
    Base,
    Compile,
    Device,
    DeviceMap,
    DType,
    Half,
    MaxNewTokens,
    Model,
    Plain,
    Precision,
    Revision,
    Seed,
    Temperature,
    TopK,
    TopP,
    Trust,
    Verbose,
)
from .streams import Commands

app = typer.Typer(
    cls=Commands,
    help="Several tokens a step from Hugging Face causal language models, with the same text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


trees = typer.Typer(
    help="Candidate trees.", no_args_is_help=True, context_settings=app.info.context_settings
)
app.add_typer(trees, name="tree")


def main() -> None:
    """Run the command line."""
    app(prog_name="medusa")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medusa {version('medusa-decoding')}")
        raise typer.Exit


def _configured(context: typer.Context, name: Optional[str]) -> Optional[str]:  # noqa: UP045
    """What a YAML file says, in place of flags that are not given."""
    if name is not None:
        with _reported(verbose=False):
            from ..training.recipe import Recipe

            named = {str(each.name) for each in context.command.params} - {
                "config",
                "help",
                "verbose",
            }
            context.default_map = Recipe.read(name, named)
    return name


@app.callback()
def _medusa(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    json: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="File for the figures.", show_default=False),
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    per_category: Annotated[int, typer.Option(min=1, max=1000, help="Requests of each kind.")] = 1,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, max=1024, help="CPU threads; by default torch's choice.", show_default=False
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """The embedded model answers with and without Medusa, side by side; no download."""
    with _reported(verbose):
        from .demo import run

        run(
            json_file=json,
            max_new_tokens=max_new_tokens,
            per_category=per_category,
            threads=threads,
        )


@app.command()
def generate(
    model: Model,
    prompt: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--prompt", "-p", help="The prompt; by default standard input.", show_default=False
        ),
    ] = None,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--file", "-f", help="File with the prompt, as UTF-8.", show_default=False),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print tokens, steps and speed to stderr afterwards.")
    ] = False,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    top_k: TopK = None,
    acceptance: Accept = Acceptance.auto,
    seed: Seed = None,
    plain: Plain = False,
    base: Base = None,
    dtype: Precision = DType.auto,
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    compile: Compile = False,
    half_weights: Half = False,
    verbose: Verbose = False,
) -> None:
    """Answer one prompt, streaming; accepted candidates are green on a terminal."""
    if prompt is not None and file is not None:
        raise typer.BadParameter("--prompt and --file both give the prompt: leave one out")
    _check_sampling(temperature, top_p, top_k, acceptance)
    _check_devices(device, device_map)
    with _reported(verbose):
        from .answer import Sampling
        from .generate import read_prompt, run
        from .models import load

        text = read_prompt(prompt, file)
        loaded = load(
            model,
            base=base,
            dtype=dtype.value,
            device=device,
            device_map=device_map,
            revision=revision,
            trust_remote_code=trust_remote_code,
            compiled=compile,
            half_weights=half_weights,
        )
        sampling = Sampling(
            max_new_tokens, temperature, top_p, top_k, acceptance.value, seed, plain
        )
        run(*loaded, text, sampling, raw=raw, stats=stats)


@app.command()
def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="System message.", show_default=False)] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    top_k: TopK = None,
    acceptance: Accept = Acceptance.auto,
    seed: Seed = None,
    plain: Plain = False,
    base: Base = None,
    dtype: Precision = DType.auto,
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    compile: Compile = False,
    half_weights: Half = False,
    verbose: Verbose = False,
) -> None:
    """A conversation, streaming; /help lists its commands. Piped input is a turn a line."""
    _check_sampling(temperature, top_p, top_k, acceptance)
    _check_devices(device, device_map)
    with _reported(verbose):
        from .answer import Sampling
        from .chat import Chat
        from .models import load

        loaded = load(
            model,
            base=base,
            dtype=dtype.value,
            device=device,
            device_map=device_map,
            revision=revision,
            trust_remote_code=trust_remote_code,
            compiled=compile,
            half_weights=half_weights,
        )
        sampling = Sampling(
            max_new_tokens, temperature, top_p, top_k, acceptance.value, seed, plain
        )
        Chat(*loaded, sampling, system).run()


@app.command()
def calibrate(
    model: Model,
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="FILE|DATASET",
            help="Prompts as the model will serve them: .txt (one a line), .jsonl, .json, or a "
            "dataset on the hub.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        int,
        typer.Option(
            min=2, max=5000, help="Most prompts to use; every fifth is kept to try the tree on."
        ),
    ] = 150,
    max_nodes: Annotated[int, typer.Option(min=1, max=1024, help="Most nodes of the tree.")] = 64,
    heads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Number of heads to use; by default all.", show_default=False),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=4096, help="Rows decoded at once, as the model will serve.")
    ] = 1,
    context: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(
            min=1,
            max=MOST_TOKENS,
            help="Length of context at which steps are timed (repeatable).",
            show_default="the texts' own",
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            min=3, max=100_000, help="Times that steps of each size are timed at each context."
        ),
    ] = 20,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FOLDER",
            help="Folder for heads and tree; by default the tree goes beside the heads.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="File for the whole report.", show_default=False),
    ] = None,
    figures: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FOLDER",
            help="Folder for pictures of accuracies and trees (needs matplotlib).",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FOLDER",
            help="Folder for finished batches; rerun to resume.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    top_k: TopK = None,
    acceptance: Accept = Acceptance.auto,
    base: Base = None,
    dtype: Precision = DType.auto,
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    compile: Compile = False,
    half_weights: Half = False,
    verbose: Verbose = False,
) -> None:
    """Find the tree that decodes fastest here, for these prompts, and store it beside the heads."""
    _check_sampling(temperature, top_p, top_k, acceptance)
    _check_devices(device, device_map)
    with _reported(verbose):
        from ..calibration.report import Settings
        from .answer import Sampling
        from .calibrate import run

        arguments = Sampling(max_new_tokens, temperature, top_p, top_k).arguments()
        kept = {
            name: value
            for name, value in arguments.items()
            if name not in ("acceptance", "generator", "tree")
        }
        run(
            model,
            data=data,
            prompts=prompts,
            arguments={**kept, "max_new_tokens": max_new_tokens, "within_positions": True},
            acceptance=acceptance.value,
            settings=Settings(
                max_nodes, heads, tuple(context) if context else None, batch_size, rounds
            ),
            output=output,
            json_file=json,
            figures=figures,
            resume=resume,
            base=base,
            dtype=dtype.value,
            device=device,
            device_map=device_map,
            revision=revision,
            trust_remote_code=trust_remote_code,
            compiled=compile,
            half_weights=half_weights,
        )


@app.command()
@with_recipe
def train(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder or hub id of a base model or of heads to go on with, or 'demo', the "
            "embedded model's heads.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Training data: a .jsonl, .json, .parquet or .txt file, a folder of them, or a "
            "dataset on the hub.",
            show_default=False,
        ),
    ],
    options: dict,  # type: ignore[type-arg]
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Output folder; rerun to resume.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="FILE|NAME",
            help="Options from a YAML file, or from a recipe that comes with medusa; flags "
            "override them.",
            show_default=False,
            is_eager=True,
            callback=_configured,
        ),
    ] = None,
    evaluation: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="SOURCE",
            help="Data for evaluation; by default a share of --data.",
            show_default=False,
        ),
    ] = None,
    chat_template: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FILE",
            help="Jinja chat template to use instead of the tokenizer's.",
            show_default=False,
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a dataset on the hub.")] = "train",
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Read at most so many records.", show_default=False),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip malformed records, and count them.")
    ] = False,
    hidden_states: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FOLDER",
            help="Keep hidden states here for several runs to share; without it, "
            "--cache-hidden-states keeps them in "
            "the output folder.",
            show_default=False,
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Write the changed backbone as a whole model, not as an adapter."
        ),
    ] = False,
    preview: Annotated[
        bool,
        typer.Option(
            "--preview", help="Print the first example, what is learnt in green, and stop."
        ),
    ] = False,
    report_to: Annotated[
        str, typer.Option(help="Log to this service of transformers, too: tensorboard, wandb, ...")
    ] = "none",
    revision: Revision = None,
    trust_remote_code: Trust = False,
    verbose: Verbose = False,
) -> None:
    """Train heads for a model (Medusa-1), or heads and backbone together (Medusa-2)."""
    with _reported(verbose):
        from ..training.source import Source
        from .train import run

        loading = {"revision": revision} if revision is not None else {}
        run(
            Source(
                model,
                data,
                evaluation,
                template=None
                if chat_template is None
                else chat_template.read_text(encoding="utf-8-sig"),
                skip_bad=skip_bad,
                limit=limit,
                split=split,
                loading={**loading, **({"trust_remote_code": True} if trust_remote_code else {})},
            ),
            options=options,
            output=output,
            hidden_states=hidden_states,
            merge=merge,
            report_to=report_to,
            preview=preview,
        )


@app.command()
def distill(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="The model that answers, as for generate; with --server, the model's name on the "
            "server.",
            show_default=False,
        ),
    ],
    prompts: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Prompts, or chats whose user turns are asked: a file, a folder, or a dataset on "
            "the hub.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Output file, JSON lines; rerun to resume.",
            show_default=False,
        ),
    ],
    temperature: Temperature = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 1024,
    leave_out_cut: Annotated[
        bool,
        typer.Option(
            "--leave-out-cut",
            help="Leave out answers that reach --max-new-tokens, instead of marking them as cut.",
        ),
    ] = False,
    self_talk: Annotated[
        int, typer.Option(min=0, help="Number of questions the model asks itself afterwards.")
    ] = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Number of conversations decoded at once.")
    ] = 8,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Read at most this many prompts.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a dataset on the hub.")] = "train",
    server: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="URL",
            help="Address of an OpenAI-compatible server, such as http://localhost:8000/v1 (key: "
            "OPENAI_API_KEY).",
            show_default=False,
        ),
    ] = None,
    in_flight: Annotated[
        int, typer.Option(min=1, help="Number of requests to the server at once.")
    ] = 8,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds in which the server must answer a request.")
    ] = 600,
    base: Base = None,
    dtype: Precision = DType.auto,
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    compile: Compile = False,
    half_weights: Half = False,
    verbose: Verbose = False,
) -> None:
    """Let a model answer prompts: its own answers are what its heads learn from."""
    _check_devices(device, device_map)
    with _reported(verbose):
        from ..training.conversations import GenerationSettings
        from .distill import run

        run(
            model,
            prompts,
            GenerationSettings(model, temperature, seed, max_new_tokens, self_talk, leave_out_cut),
            output,
            batch_size=batch_size,
            limit=limit,
            split=split,
            server=server,
            in_flight=in_flight,
            timeout=timeout,
            base=base,
            dtype=dtype.value,
            device=device,
            device_map=device_map,
            revision=revision,
            trust_remote_code=trust_remote_code,
            compiled=compile,
            half_weights=half_weights,
        )


@trees.command("show")
def show_tree(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE",
            help="Heads (folder, hub id, 'demo') or a tree file.",
            show_default=False,
        ),
    ],
    png: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="File for a PNG picture.", show_default=False),
    ] = None,
    svg: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="File for an SVG picture.", show_default=False),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Print a tree, and draw it as the paper's figure 6 does."""
    with _reported(verbose):
        from .tree import show

        show(model, {kind: file for kind, file in (("png", png), ("svg", svg)) if file is not None})


@contextmanager
def _reported(verbose: bool) -> Iterator[None]:
    """Print an error as one line on stderr and exit with status 1, after an interrupt with 130.

    With `verbose` the traceback is printed instead. Only where it may help a user does the line say
    how to get it.
    """
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # on a CPU it asks for kernels that nothing needs
    try:
        yield
    except (BrokenPipeError, typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if _interrupted(error):
            typer.echo(err=True)
            raise typer.Exit(130) from None
        if verbose:
            traceback.print_exc()
        else:
            typer.echo(_line(error), err=True)
        raise typer.Exit(1) from None


def _interrupted(error: BaseException | None) -> bool:
    """Whether an error is an interrupt, or what a library made of one, as while transformers
    imports its modules.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _line(error: BaseException) -> str:
    """An error as one line; what only a fault of ours or of a library can cause is told from a
    user's error.
    """
    kind, message = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError, ImportError)):
        return f"error: {message or kind}"
    if isinstance(error, (RuntimeError, MemoryError)):  # such as memory that is not enough
        return f"error: {message or kind} (--verbose shows the traceback)"
    told = f"{kind}: {message}" if message else kind
    return f"error: unexpected {told}; --verbose shows the traceback, please report it"


def _check_sampling(
    temperature: float, top_p: float | None, top_k: int | None, acceptance: Acceptance
) -> None:
    if temperature == 0 and (top_p is not None or top_k is not None):
        raise typer.BadParameter("--top-p and --top-k shape sampling: pass --temperature above 0")
    if temperature == 0 and acceptance is Acceptance.rejection:
        raise typer.BadParameter("--acceptance rejection samples: pass --temperature above 0")
    if temperature > 0 and acceptance is Acceptance.greedy:
        raise typer.BadParameter("--acceptance greedy does not sample: leave out --temperature")


def _check_devices(device: str | None, device_map: str | None) -> None:
    if device is not None and device_map is not None:
        raise typer.BadParameter("--device and --device-map both place the model: leave one out")
