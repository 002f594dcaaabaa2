"""Settings from mappings, as JSON gives them: an unknown name is an error, with the near miss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from recsim_env.errors import DataError, near_miss

__all__ = ["from_mapping"]

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
