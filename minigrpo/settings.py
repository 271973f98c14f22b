"""One way to declare what a program can be told: fields that document, check and offer themselves.

    objective: str = setting("grpo", "what gives advantages and step weights", choices=OBJECTIVES)

is a field of a frozen dataclass with its default. `check_kinds` and `check_choices` refuse another kind of value or
another name, and `add_options` makes it the option --objective.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection
from typing import Any

from minigrpo.checks import check_choice

# An annotation, as it is written: what a value may be, how that is said, and what the command line makes of a text.
KINDS: dict[str, tuple[Any, str, type]] = {
    "str": (str, "a text", str),
    "bool": (bool, "true or false", bool),
    "int": (int, "a whole number", int),
    "float": (int | float, "a number", float),
    "float | None": (int | float | None, "a number or None", float),
}


def setting(default: Any, text: str, *, choices: Collection[str] = ()) -> Any:
    """Declare a field of a dataclass of settings.

    Args:
        default: its value where nothing else is said.
        text: the line that documents it, here and on the command line.
        choices: the names that it may have; none where it is free.
    """
    return dataclasses.field(default=default, metadata={"help": text, "choices": tuple(choices)})


def declared(kind: Any) -> list[dataclasses.Field]:
    """The fields of a dataclass that were declared by `setting`."""
    return [field for field in dataclasses.fields(kind) if "help" in field.metadata]


def kind_of(field: dataclasses.Field) -> tuple[Any, str, type]:
    """The entry of KINDS for a field, whether its annotation is kept as a text or as a type."""
    return KINDS[getattr(field.type, "__name__", str(field.type))]


def check_kinds(settings: Any) -> None:
    """Require that each field holds what it is annotated as. Raises: ValueError that names the field."""
    for field in declared(type(settings)):
        value = getattr(settings, field.name)
        kind, words, _ = kind_of(field)
        # To Python, True is a whole number; to a reader it is none.
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"{field.name} must be {words}, got {value!r}")


def check_choices(settings: Any) -> None:
    """Require that each field with choices holds one of them. Raises: ValueError that names the field."""
    for field in declared(type(settings)):
        if choices := field.metadata["choices"]:
            check_choice(field.name, getattr(settings, field.name), choices)


def add_options(
    parser: argparse.ArgumentParser,
    kind: Any,
    *,
    only: Collection[str] = (),
    without: Collection[str] = (),
) -> None:
    """Add an option for each setting; one that is not given is None, so that `given` can tell.

    Args:
        parser: of the command.
        kind: the dataclass of its settings.
        only: names of fields; all where there are none.
        without: names of fields that get no option.
    """
    for field in declared(kind):
        if (only and field.name not in only) or field.name in without:
            continue
        option = f"--{field.name.replace('_', '-')}"
        text = f"{field.metadata['help']} [{field.default}]".replace("%", "%%")
        _, _, read = kind_of(field)
        if read is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
        elif field.metadata["choices"]:
            parser.add_argument(option, choices=field.metadata["choices"], help=text)
        else:
            parser.add_argument(option, type=read, metavar=read.__name__.upper(), help=text)


def given(arguments: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """The settings that were given as options, by name."""
    options = {field.name: getattr(arguments, field.name, None) for field in declared(kind)}
    return {name: value for name, value in options.items() if value is not None}
