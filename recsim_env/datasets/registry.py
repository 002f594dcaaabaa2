"""The datasets that have a name."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from recsim_env.datasets.amazon import AmazonSource
from recsim_env.datasets.coat import CoatSource
from recsim_env.datasets.dataset import Dataset
from recsim_env.datasets.movielens import MovieLensSource
from recsim_env.datasets.sources import Source
from recsim_env.datasets.steam import SteamSource
from recsim_env.datasets.synthetic import SyntheticSource
from recsim_env.errors import DataError, near_miss

__all__ = ["SEQUENCES", "load", "names", "source"]

_SOURCES: dict[str, type[Source]] = {
    kind.name: kind
    for kind in (AmazonSource, CoatSource, MovieLensSource, SteamSource, SyntheticSource)
}

SEQUENCES = ("industrial",)
"""Names of built-in sequences (`recsim_env.sequences`) that are not those of a dataset, too."""


def names() -> list[str]:
    """Returns the names that `load` knows, sorted."""
    return sorted(_SOURCES)


def source(name: str, **options: Any) -> Source:
    """Returns the source of a dataset with its options set, without reading anything.

    Raises:
        DataError: The name or an option is not known.
    """
    kind = _SOURCES.get(name)
    if kind is None:
        raise DataError(
            f"The dataset {name!r} is not known: {near_miss(name, names())}; for data of your own "
            "see recsim_env.datasets.from_tables."
        )
    known = [field.name for field in dataclasses.fields(kind)]
    for option in options:
        if option not in known:
            raise DataError(
                f"The dataset {name!r} has no option {option!r}: {near_miss(option, known)}."
            )
    _check_types(kind, options)
    return kind(**options)


def _check_types(kind: type[Source], options: Mapping[str, Any]) -> None:
    """Refuses numbers that are none; the ranges are the source's to check."""
    hints = typing.get_type_hints(kind)
    for option, value in options.items():
        wanted = hints[option]
        allowed = typing.get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
        if not all(one in (int, float, bool, str, NoneType) for one in allowed):
            continue
        accepted = (*allowed, int) if float in allowed else allowed
        if type(value) not in accepted:
            raise DataError(
                f"The option {option}={value!r} of {kind.name!r} came, expected "
                f"{' or '.join('null' if one is NoneType else one.__name__ for one in allowed)}: "
                "change it."
            )


def load(name: str, root: str | Path | None = None, **options: Any) -> Dataset:
    """Reads a dataset by its name.

    Args:
        name: One of `names()`.
        root: The data folder. None: the environment variable `ILREC_DATA`, and without that the
            folder "data" in the user's cache directory.
        **options: Fields of the source's class, such as `min_user` and `min_item`.

    Returns:
        The dataset; `print(dataset.table())` tells what is in it.

    Raises:
        MissingDataError: The data are not there.
        DataError: The name, an option or the data are not usable.
    """
    return source(name, **options).load(root)
