"""What a source of data is, and where its files are looked for."""

from __future__ import annotations

import abc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import platformdirs

from recsim_env.datasets.dataset import Dataset
from recsim_env.errors import MissingDataError

__all__ = ["Source", "find_root", "first_existing"]


@dataclass(frozen=True)
class Source(abc.ABC):
    """A kind of data, and the settings of how it is read; the fields are the options of `load`."""

    name: ClassVar[str]

    @abc.abstractmethod
    def load(self, root: str | Path | None = None) -> Dataset:
        """Reads the data.

        Args:
            root: The data folder; None: see `find_root`.
        """


def find_root(root: str | Path | None = None) -> Path:
    """Returns the folder in which data are looked for.

    Args:
        root: The folder. None: the environment variable `ILREC_DATA`, and without that the folder
            "data" in the user's cache directory.

    Raises:
        MissingDataError: That folder is not there.
    """
    if root is not None:
        place, said_by = Path(root).expanduser(), "as given"
    elif os.environ.get("ILREC_DATA"):
        place, said_by = Path(os.environ["ILREC_DATA"]).expanduser(), "ILREC_DATA"
    else:
        place = Path(platformdirs.user_cache_dir("ilrec")) / "data"
        said_by = "the default, as neither root nor ILREC_DATA is set"
    if not place.is_dir():
        raise MissingDataError(
            f"The data folder {place} ({said_by}) is not there, expected a folder that holds the "
            "datasets: make it, give root=... (--data on the command line), or set the environment "
            "variable ILREC_DATA."
        )
    return place


def first_existing(
    root: Path, folders: tuple[str, ...], wanted: Mapping[str, tuple[str, ...]], name: str
) -> tuple[str, Path]:
    """Returns the first form of a dataset whose files are all there, and the folder they are in.

    Args:
        root: The data folder.
        folders: Folders below it to look in, before `root` itself.
        wanted: Files that each form consists of, by the name of the form, the preferred one first.
        name: Of the dataset, for messages.

    Raises:
        MissingDataError: No form is there.
    """
    places = [root / folder for folder in folders] + [root]
    for form, files in wanted.items():
        for place in places:
            if all((place / file).is_file() for file in files):
                return form, place
    forms = "; or ".join(" and ".join(files) for files in wanted.values())
    looked = ", ".join(str(place) for place in places)
    raise MissingDataError(
        f"No data for {name!r} were found in {looked}, expected {forms}: put the files there, give "
        "root=... (--data on the command line), or set the environment variable ILREC_DATA."
    )
