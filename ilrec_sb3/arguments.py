"""What constructors take, told by their signatures, so that a wrong argument gets one sentence."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from recsim_env.errors import DataError, near_miss
from recsim_env.settings import check_type

__all__ = ["arguments_of", "check_arguments", "defaults_of"]


def arguments_of(kind: type) -> dict[str, Any]:
    """Returns the names of a constructor's arguments and their types.

    Those of its bases are among them as far as it hands them on. A type that cannot be known here,
    such as one that is imported for type checkers only, is `Any`.

    Args:
        kind: A class.
    """
    return {parameter.name: _type_of(parameter, names) for parameter, names in _parameters_of(kind)}


def defaults_of(kind: type) -> dict[str, Any]:
    """Returns the names of a constructor's arguments that have a default, and their defaults.

    Args:
        kind: A class.
    """
    return {
        parameter.name: parameter.default
        for parameter, _ in _parameters_of(kind)
        if parameter.default is not parameter.empty
    }


def _parameters_of(kind: type) -> list[tuple[inspect.Parameter, dict[str, Any]]]:
    """Returns a constructor's parameters, each with the names that its annotation may use."""
    known: dict[str, tuple[inspect.Parameter, dict[str, Any]]] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        made = vars(base)["__init__"]
        parameters = list(inspect.signature(made).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                known.setdefault(parameter.name, (parameter, made.__globals__))
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
            break
    return [found for name, found in known.items() if not name.startswith("_")]


def _type_of(parameter: inspect.Parameter, names: dict[str, Any]) -> Any:
    if parameter.annotation is parameter.empty:
        return Any
    annotated = SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:
        return typing.get_type_hints(annotated, names)["it"]
    except NameError:
        return Any


def check_arguments(owner: str, values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuses arguments that are not known or not of their type.

    Args:
        owner: Whose they are, for the message.
        values: The arguments.
        known: Their names and types, see `arguments_of`.

    Raises:
        DataError: For the first that does not fit.
    """
    for name, value in values.items():
        if name not in known:
            raise DataError(
                f"The setting {name!r} came, which {owner} does not have; {near_miss(name, known)}."
            )
        check_type(f"{owner}: {name}", value, known[name])
