"""Errors that a user of the simulator may want to catch.

IlrecError
 x DataError             (also a ValueError)          what was given is not usable as it is
   + MissingDataError    (also a FileNotFoundError)   a file or a folder is not there
 x ArtefactError         (also a RuntimeError)        a prepared artefact is broken or does not fit

Every message says in one sentence what came, what was expected and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["ArtefactError", "DataError", "IlrecError", "MissingDataError", "near_miss"]


class IlrecError(Exception):
    """Base class of the project's own errors."""


class DataError(IlrecError, ValueError):
    """Input data cannot be used as it is."""


class MissingDataError(DataError, FileNotFoundError):
    """A file or folder that should hold data is not there."""

    def __str__(self) -> str:
        """Returns the sentence alone (OSError would print its own fields)."""
        return str(self.args[0]) if self.args else ""


class ArtefactError(IlrecError, RuntimeError):
    """A prepared artefact is broken or belongs to something else."""


def near_miss(name: str, known: Iterable[str]) -> str:
    """Returns a phrase that lists what is known and suggests the nearest name.

    Args:
        name: What came.
        known: The names that would have been understood.

    Returns:
        For example ``"did you mean 'steam'? Known: amazon, coat, steam"``.
    """
    names = sorted(known)
    by_lower = {known_name.lower(): known_name for known_name in names}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[close[0]]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names)}"
