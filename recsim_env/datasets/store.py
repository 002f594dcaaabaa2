"""Datasets of the user's own, kept by name beside the prepared artefacts."""

from __future__ import annotations

import re
from pathlib import Path

from recsim_env import artefacts
from recsim_env.datasets.dataset import Dataset
from recsim_env.datasets.registry import SEQUENCES, names
from recsim_env.errors import DataError, near_miss

__all__ = ["custom_names", "load_custom", "save_custom"]


def _folder(cache: str | Path | None) -> Path:
    return artefacts.cache_dir(cache) / "custom"


def custom_names(cache: str | Path | None = None) -> list[str]:
    """Returns the names of the datasets that were saved with `save_custom`, sorted.

    Args:
        cache: Folder for artefacts; else ``ILREC_CACHE``, else the user cache directory.
    """
    folder = _folder(cache)
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def save_custom(dataset: Dataset, cache: str | Path | None = None) -> Path:
    """Keeps a dataset by name for ``gym.make("IlRecCustom-v0", dataset=name)``.

    Args:
        dataset: From `recsim_env.datasets.from_tables`; one of the same name is replaced.
        cache: Folder for artefacts; else ``ILREC_CACHE``, else the user cache directory.

    Returns:
        The folder that was written.

    Raises:
        DataError: For a name that is a built-in dataset's or is not fit for a folder.
    """
    if dataset.name in (*names(), *SEQUENCES):
        raise DataError(
            f"{dataset.name!r} came as the name of your own dataset, but it is a built-in one's; "
            "choose another name."
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", dataset.name):
        raise DataError(
            f"{dataset.name!r} came as the name of a dataset; use up to 64 letters, digits, '.', "
            "'_' and '-', and begin with a letter or digit."
        )
    return dataset.save(_folder(cache) / dataset.name)


def load_custom(name: str, cache: str | Path | None = None) -> Dataset:
    """Returns a dataset that was saved with `save_custom`.

    Args:
        name: Its name.
        cache: As there.

    Raises:
        DataError: For a name that is not there; says which are.
    """
    known = custom_names(cache)
    if name not in known:
        raise DataError(
            f"The dataset {name!r} is not known; {near_miss(name, [*names(), *known])}. Your own "
            f"become known with `ilrec prepare --interactions FILE --items FILE --name {name}`."
        )
    return Dataset.load(_folder(cache) / name)
