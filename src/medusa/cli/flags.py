"""A flag for every field of a recipe, so that what an option is stands in one place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from enum import Enum
from typing import Annotated, Any, Optional, get_args, get_type_hints

import typer

from ..training.recipe import Recipe


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for every field of `Recipe`; it is called with those that were given
    as `options`.
    """
    own = inspect.signature(command, eval_str=True)
    kinds = get_type_hints(Recipe)
    flags = {
        each.name: _flag(each.name, kinds[each.name], each.default, each.metadata["help"])
        for each in fields(Recipe)
    }

    def called(**given: Any) -> None:
        options = {name: value for name in flags if (value := given.pop(name)) is not None}
        plain = {
            name: value.value if isinstance(value, Enum) else value
            for name, value in options.items()
        }
        command(**given, options=plain)

    kept = [each for each in own.parameters.values() if each.name != "options"]
    called.__signature__ = inspect.Signature([*kept, *flags.values()])  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in [*kept, *flags.values()]}
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    return called


def _flag(name: str, kind: Any, default: Any, text: str) -> inspect.Parameter:
    shown = f"{default:g}" if isinstance(default, float) else str(default).lower()
    flag = f"--{name.replace('_', '-')}"
    choices = get_args(kind)
    taken: Any = Enum(name, {each: each for each in choices}, type=str) if choices else kind
    names = (f"{flag}/--no-{name.replace('_', '-')}",) if kind is bool else (flag,)
    option = typer.Option(*names, help=f"{text}.", show_default=shown, rich_help_panel="Recipe")
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Optional[taken], option],  # noqa: UP045
    )
