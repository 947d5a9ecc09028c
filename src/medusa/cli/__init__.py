"""The command line: `medusa demo`, `generate`, `chat`, `serve`, `calibrate`, `bench`, `train`,
`distill`, `convert`, `inspect`, `export`, `roofline`, `plan`, `tree`.

Each command has a module of its own: its options are dataclasses, and its function makes the
options into calls of the library. Modules that load torch are imported inside these functions, so
that `--help` is quick.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from . import (
    bench,
    calibrate,
    chat,
    convert,
    demo,
    distill,
    export,
    generate,
    inspect,
    plan,
    roofline,
    serve,
    train,
    tree,
)
from .errors import reporting
from .parameters import with_parameters
from .streams import Commands, RunByDefault

SETTINGS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    cls=Commands,
    help="Faster decoding for Hugging Face causal language models: several tokens per step, and "
    "the same text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)
trees = typer.Typer(
    help="Show and draw candidate trees.", no_args_is_help=True, context_settings=SETTINGS
)
app.add_typer(trees, name="tree")
benches = typer.Typer(
    cls=RunByDefault,
    help="Compare ways of decoding on a suite of questions. `medusa bench MODEL` is short for "
    "`medusa bench run MODEL`.",
    no_args_is_help=True,
    context_settings=SETTINGS,
)
app.add_typer(benches, name="bench")

for command in (
    demo.demo,
    generate.generate,
    chat.chat,
    serve.serve,
    calibrate.calibrate,
    train.train,
    distill.distill,
    convert.convert,
    inspect.inspect,
    export.export,
    roofline.roofline,
    plan.plan,
):
    app.command()(reporting(with_parameters(command)))
trees.command()(reporting(with_parameters(tree.show)))
benches.command()(reporting(with_parameters(bench.run)))
benches.command()(reporting(with_parameters(bench.compare)))
benches.command()(reporting(with_parameters(bench.judge)))


def main() -> None:
    """Run the command line."""
    app(prog_name="medusa")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medusa {version('medusa-decoding')}")
        raise typer.Exit


@app.callback()
def _medusa(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass
