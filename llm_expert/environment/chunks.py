"""Results of long work, kept piece by piece in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from recsim_env.artefacts import write_file

__all__ = ["ChunkFolder"]


class ChunkFolder:
    """Pieces of one kind of work under one key; each is written whole or not at all.

    Args:
        folder: Where to; None keeps nothing. Pieces of other work may be in it.
        kind: What the pieces are, the first part of their names.
        key: Hash of all that they depend on; pieces under another key are not looked at.
    """

    def __init__(self, folder: str | Path | None, kind: str, key: str) -> None:
        self._folder = None if folder is None else Path(folder) / f"{kind}-{key[:16]}"

    def load(self, number: int) -> dict[str, NDArray[Any]] | None:
        """Returns a piece, or None where it is not there or cannot be read whole."""
        if self._folder is None:
            return None
        try:
            return dict(load_file(self._path(number)))
        except (OSError, SafetensorError):
            return None

    def save(self, number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keeps a piece."""
        if self._folder is not None:
            whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            write_file(self._path(number), save(whole))

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{number:06d}.safetensors"
