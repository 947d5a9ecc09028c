"""`medusa train`: train heads, and with Medusa-2 the backbone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..training.recipe import Recipe
from .errors import reported
from .options import HubOptions, split_option
from .parameters import Panel, argument, given_fields, option

if TYPE_CHECKING:
    from ..training.source import Source


def _read_config(context: typer.Context, name: str | None) -> str | None:
    """Make the options in a YAML file the defaults of the command, so that flags override them."""
    if name is not None:
        with reported(verbose=False):
            options = {str(parameter.name) for parameter in context.command.params}
            context.default_map = Recipe.read(name, options - {"config", "help", "verbose"})
    return name


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options that name the model and the data to train on."""

    model: str = argument(
        "Folder or hub id of a base model or of heads to train further, or 'demo', the heads of "
        "the embedded model",
        "MODEL",
    )
    data: str = option(
        "Training data: a .jsonl, .json, .parquet or .txt file, a folder of them, or a dataset on "
        "the hub",
        metavar="SOURCE",
    )
    evaluation: str | None = option(
        "Data for evaluation; by default a share of --data", default=None, metavar="SOURCE"
    )
    chat_template: Path | None = option(
        "File with a Jinja chat template; by default the tokenizer's template",
        default=None,
        metavar="FILE",
        exists=True,
        dir_okay=False,
    )
    split: str = split_option()
    limit: int | None = option(
        "Maximum number of records to read; by default all", default=None, min=1
    )
    skip_bad: bool = option(
        "Skip malformed records and report their number", "--skip-bad", default=False
    )

    def source(self, hub: HubOptions) -> Source:
        """Return the model and the data as the library takes them.

        Raises:
            ValueError: the chat template is not UTF-8 text.
        """
        from ..training.source import Source
        from .models import SMOLLM2, folder_or_id

        if self.model == SMOLLM2:
            raise ValueError(
                f"'{SMOLLM2}' has heads already: name the folder or hub id of the model itself to "
                "train others"
            )
        template = self.chat_template
        return Source(
            folder_or_id(self.model),
            self.data,
            self.evaluation,
            template=None if template is None else template.read_text(encoding="utf-8-sig"),
            skip_bad=self.skip_bad,
            limit=self.limit,
            split=self.split,
            loading=hub.hub_arguments,
        )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that say where a run keeps its files and what it reports."""

    output: Path | None = option(
        "Folder for the trained heads; the same command resumes an interrupted run",
        "--output",
        "-o",
        default=None,
        metavar="FOLDER",
    )
    config: str | None = option(
        "YAML file with options, or the name of a recipe that comes with medusa; flags override "
        "its options; by default none",
        default=None,
        metavar="FILE|NAME",
        is_eager=True,
        callback=_read_config,
    )
    hidden_states: Path | None = option(
        "Folder for hidden states that several runs share; by default --cache-hidden-states keeps "
        "them in the output folder",
        default=None,
        metavar="FOLDER",
    )
    merge: bool = option(
        "Write a trained backbone as a whole model instead of as an adapter",
        "--merge",
        default=False,
    )
    preview: bool = option(
        "Print the first example, with the tokens to learn in green, and stop",
        "--preview",
        default=False,
    )
    report_to: str = option(
        "Service to which transformers logs as well, such as tensorboard or wandb", default="none"
    )


def train(
    context: typer.Context,
    data: SourceOptions,
    options: RunOptions,
    hub: HubOptions,
    recipe: Annotated[Recipe, Panel("Recipe")],
) -> None:
    """Train heads for a model (Medusa-1), or heads and backbone together (Medusa-2)."""
    recipe.check_effect(given_fields(context, Recipe))
    source = data.source(hub)
    from rich.console import Console

    from ..training.arguments import processes
    from ..training.run import train as run
    from .models import hide_piped_bars
    from .preview import show_preview

    hide_piped_bars()
    if options.preview:
        show_preview(Console(), source.tokenizer(), source, recipe.max_length, source.stops())
        return
    if options.output is None:
        raise ValueError("where should the heads go? name a folder with --output")
    say = partial(Console(stderr=True).print, soft_wrap=True)
    try:
        run(
            recipe,
            source,
            options.output,
            merge=options.merge,
            report_to=options.report_to,
            hidden_states=options.hidden_states,
            say=say,
        )
    except KeyboardInterrupt:
        say("\nstopped; the same command goes on from the last checkpoint, if there is one")
        raise
    processes().destroy_process_group()
