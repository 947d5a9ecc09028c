"""Command-line parameters from dataclasses: each option is declared once, as a field.

A field's `help` says what the option sets. `option` and `argument` add what only a command line
needs, such as a short flag or a range. Dataclasses of other layers, whose fields have nothing but
a `help`, work as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer


@dataclass(frozen=True)
class Panel:
    """The title of the box in which `--help` shows a group of options.

    Written as an annotation of the group: `Annotated[Recipe, Panel("Recipe")]`.
    """

    title: str


def option(text: str, *flags: str, default: Any = MISSING, **settings: Any) -> Any:
    """Return a dataclass field that is an option of a command.

    Args:
        text: help text, without its full stop.
        flags: by default `--name`, and `--no-name` where the field is a bool.
        default: without one, users must pass the option.
        settings: passed to `typer.Option`, such as `min`, `max` or `metavar`.
    """
    metadata = {"help": text, "flags": flags, "settings": settings}
    return field(default=default, metadata=metadata)


def argument(text: str, metavar: str, default: Any = MISSING) -> Any:
    """Return a dataclass field that is a positional argument of a command.

    Args:
        default: without one, users must pass the argument.
    """
    metadata = {"help": text, "is_argument": True, "settings": {"metavar": metavar}}
    return field(default=default, metadata=metadata)


def with_parameters(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose parameters are the fields of the dataclasses that `command` takes.

    Typer reads the parameters from the signature. The returned command makes the dataclasses from
    what typer parsed and calls `command` with them. A parameter of `command` that is no dataclass,
    such as a `typer.Context`, is passed on as it is.
    """
    groups = {
        name: kind
        for name, kind in get_type_hints(command, include_extras=True).items()
        if name != "return"
    }

    def called(**values: Any) -> None:
        arguments = {
            name: _instance(kind, values) if is_dataclass(_plain(kind)) else values[name]
            for name, kind in groups.items()
        }
        command(**arguments)

    expanded = [new for name, kind in groups.items() for new in parameters(name, kind)]
    return with_signature(called, command, expanded)


def with_signature(
    function: Callable[..., None],
    command: Callable[..., None],
    parameters: Sequence[inspect.Parameter],
) -> Callable[..., None]:
    """Give a function these parameters, and the name and docstring of a command; return it."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    function.__name__, function.__doc__ = command.__name__, command.__doc__
    return function


def parameters(name: str, kind: Any) -> list[inspect.Parameter]:
    """Return typer's parameters for one parameter of a command.

    Args:
        name: the parameter's name.
        kind: its type: a dataclass, which gives a parameter for each field, or another type.
    """
    group = _plain(kind)
    if not is_dataclass(group):
        return [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)]
    annotations = get_args(kind)[1:]
    panel = next((note.title for note in annotations if isinstance(note, Panel)), None)
    kinds = get_type_hints(group)
    return [_parameter(declared, kinds[declared.name], panel) for declared in fields(group)]


def given_fields(context: typer.Context, options: type) -> list[str]:
    """Return the names of the fields that the user set, on the command line or in a file."""
    names = [declared.name for declared in fields(options)]
    sources = {name: context.get_parameter_source(name) for name in names}
    return [name for name, source in sources.items() if source and source.name != "DEFAULT"]


def _plain(kind: Any) -> Any:
    """Return a type without its annotations: Annotated[Recipe, ...] gives Recipe."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _instance(kind: Any, values: dict[str, Any]) -> Any:
    """Return a dataclass made of the values that typer parsed for its fields."""
    group = _plain(kind)
    return group(**{declared.name: _value(values[declared.name]) for declared in fields(group)})


def _value(parsed: Any) -> Any:
    return parsed.value if isinstance(parsed, Enum) else parsed


def _parameter(field: Field[Any], kind: Any, panel: str | None) -> inspect.Parameter:
    metadata = field.metadata
    settings: dict[str, Any] = {"help": f"{metadata['help']}.", "rich_help_panel": panel}
    if field.default is None or field.default is MISSING:
        settings["show_default"] = False
    settings |= metadata.get("settings", {})
    declared = (
        typer.Argument(**settings)
        if metadata.get("is_argument")
        else typer.Option(*metadata.get("flags", ()), **settings)
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if field.default is MISSING else field.default,
        annotation=Annotated[_accepted(field.name, kind), declared],
    )


def _accepted(name: str, kind: Any) -> Any:
    """Return the type that typer parses: an Enum for a Literal, which old versions do not know."""
    if get_origin(kind) is Literal:
        return Enum(name, {choice: choice for choice in get_args(kind)}, type=str)
    return kind
