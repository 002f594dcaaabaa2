"""Settings that came from outside, as JSON or TOML: unknown names and wrong types are refused."""

from __future__ import annotations

import collections.abc
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union

import numpy as np

from recsim_env.errors import DataError, near_miss

__all__ = ["check_range", "check_type", "check_types", "fits", "from_mapping", "in_words"]

T = TypeVar("T")


def from_mapping(kind: type[T], values: Mapping[str, Any]) -> T:
    """Builds a dataclass of settings.

    Args:
        kind: The dataclass.
        values: Field names and values.

    Raises:
        DataError: For a name that is no field.
    """
    known = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise DataError(f"{kind.__name__} has no setting {name!r}; {near_miss(name, known)}.")
    return kind(**values)


def check_types(settings: Any) -> None:
    """Refuses fields whose values are not of their type.

    Args:
        settings: A dataclass.

    Raises:
        DataError: For the first field that does not fit.
    """
    hints = typing.get_type_hints(type(settings))
    for item in fields(settings):
        check_type(item.name, getattr(settings, item.name), hints[item.name])


def check_type(name: str, value: object, hint: Any) -> None:
    """Refuses a value that is not of a type.

    Args:
        name: What the message calls it; entries of a table are called ``name.entry``, those of a
            list ``name[0]``.
        value: What came.
        hint: The type, see `fits`.

    Raises:
        DataError: It does not fit.
    """
    if fits(value, hint):
        return
    if typing.get_origin(hint) in _TABLES and isinstance(value, Mapping):
        for entry, item in value.items():
            check_type(f"{name}.{entry}", item, typing.get_args(hint)[1])
    inner = typing.get_args(hint)
    if typing.get_origin(hint) in _LISTS and isinstance(value, (list, tuple)):
        if len(inner) == 1 or inner[1:] == (...,):  # each entry of one type
            for place, item in enumerate(value):
                check_type(f"{name}[{place}]", item, inner[0])
    raise DataError(f"{name}={value!r} came; expected {in_words(hint)}.")


def check_range(settings: Any, *names: str, least: float, most: float | None = None) -> None:
    """Refuses numbers that are out of a range or not finite; None is left out.

    Args:
        settings: A dataclass.
        *names: Of its fields.
        least: The smallest number allowed.
        most: The largest, if there is one.

    Raises:
        DataError: For the first field that is out of the range.
    """
    said = f"{least} or more" if most is None else f"{least} to {most}"
    last = sys.float_info.max if most is None else most
    for name in names:
        value = getattr(settings, name)
        if value is not None and not least <= value <= last:
            raise DataError(f"{name}={value!r} came; expected {said}.")


def fits(value: object, hint: Any) -> bool:
    """Returns whether a value is of a type.

    Whole numbers are numbers too, true and false are neither, and a list will do for a tuple, since
    JSON and TOML have no tuples. What a type says beyond that of a class of its own, such as the
    arguments of a function, is not looked at.

    Args:
        value: What came.
        hint: The type, as `typing.get_type_hints` gives it.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    kind = origin or hint
    if origin in _UNIONS:
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if kind in _SIMPLE:
        return _SIMPLE[kind][0](value)
    if kind in _LISTS:
        return _fits_list(value, kind, inner)
    if kind in _TABLES:
        return isinstance(value, Mapping) and all(
            fits(item, one) for one in inner[1:] for item in value.values()
        )
    # from Python 3.11 on `Any` is a class; type variables are none
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def _fits_list(value: object, kind: Any, inner: tuple[Any, ...]) -> bool:
    kinds = (list, tuple) if kind in (list, tuple) else kind
    if not isinstance(value, kinds) or isinstance(value, str):
        return False
    if kind is tuple and inner and inner[-1] is not ...:
        return len(value) == len(inner) and all(map(fits, value, inner))
    return all(fits(item, one) for one in inner[:1] for item in value)


def in_words(hint: Any) -> str:
    """Returns what a type stands for, such as ``"a whole number or text"``; None is left out.

    Args:
        hint: As in `fits`.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    kind = origin or hint
    if origin in _UNIONS:
        said = dict.fromkeys(in_words(one) for one in inner if one is not type(None))
        return " or ".join(said)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if kind in _SIMPLE:
        return _SIMPLE[kind][1]
    if kind in _LISTS:
        return "a list"
    if kind in _TABLES:
        return "a table"
    return f"a {getattr(kind, '__name__', kind)}"


def _number(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind) and not isinstance(value, (bool, np.bool_))


_SIMPLE: dict[Any, tuple[Callable[[object], bool], str]] = {
    int: (_number(Integral), "a whole number"),
    float: (_number(Real), "a number"),
    bool: (lambda value: isinstance(value, (bool, np.bool_)), "true or false"),
    str: (lambda value: isinstance(value, str), "text"),
    type: (lambda value: isinstance(value, type), "a class"),
    type(None): (lambda value: value is None, "nothing"),
    collections.abc.Callable: (callable, "a function"),
}
_LISTS = (list, tuple, collections.abc.Sequence)
_TABLES = (dict, collections.abc.Mapping)
_UNIONS = (Union, types.UnionType)
