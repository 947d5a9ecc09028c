"""Parameters of commands, made from dataclasses."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from medusa.cli.parameters import Panel, argument, given_fields, option, with_parameters


@dataclass(frozen=True, kw_only=True)
class Fruit:
    kind: str = argument("Kind of fruit", "KIND")
    colour: Literal["red", "green"] = option("Colour of it", default="red")
    weights: list[int] | None = option("Weights of several", "--weight", default=None, min=1)
    ripe: bool = option("It is ripe", "--ripe", default=False)


@dataclass(frozen=True)
class Plain:
    """A dataclass that knows nothing of command lines."""

    sugar: float = field(default=0.5, metadata={"help": "Spoons of sugar"})
    peeled: bool = field(default=True, metadata={"help": "Peel it first"})

    def __post_init__(self):
        if self.sugar < 0:
            raise ValueError("sugar must not be negative")


@pytest.fixture
def run():
    """Runs a command; returns its result and what the command was called with."""
    app, calls = typer.Typer(), []

    def eat(context: typer.Context, fruit: Fruit, plain: Annotated[Plain, Panel("Kitchen")]):
        """Eat something."""
        calls.append((fruit, plain, given_fields(context, Plain)))

    app.command()(with_parameters(eat))

    def invoke(*arguments):
        return CliRunner().invoke(app, list(arguments)), calls

    return invoke


def test_defaults_are_the_fields_own(run):
    result, calls = run("apple")
    assert result.exit_code == 0, result.output
    assert calls == [(Fruit(kind="apple"), Plain(), [])]


def test_options_make_the_dataclasses(run):
    options = ["--colour", "green", "--weight", "3", "--weight", "4", "--ripe", "--no-peeled"]
    result, calls = run("pear", *options, "--sugar", "0.5")
    assert result.exit_code == 0, result.output
    fruit = Fruit(kind="pear", colour="green", weights=[3, 4], ripe=True)
    assert calls == [(fruit, Plain(0.5, False), ["sugar", "peeled"])]


@pytest.mark.parametrize(
    "arguments",
    [[], ["apple", "--colour", "blue"], ["apple", "--weight", "0"], ["apple", "--no-ripe"]],
)
def test_what_a_field_does_not_allow_is_a_usage_error(run, arguments):
    result, calls = run(*arguments)
    assert (result.exit_code, calls) == (2, [])


def test_errors_of_a_dataclass_are_its_own(run):
    result, _ = run("apple", "--sugar", "-1")
    assert isinstance(result.exception, ValueError)


def test_help_shows_texts_defaults_and_panels(run):
    text = " ".join(run("--help")[0].output.replace("│", " ").split())
    for part in ("Eat something.", "Kind of fruit.", "[default: red]", "Kitchen", "--no-peeled"):
        assert part in text
    assert "--no-ripe" not in text
    assert "Spoons of sugar. [default: 0.5]" in text
