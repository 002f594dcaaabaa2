"""Cells that were made before under another name, in this grid or another one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ilrec_sb3.arguments import defaults_of
from ilrec_sb3.baselines import find_algorithm
from ilrec_sb3.cells import CELL, DEMONSTRATIONS, PLANNERS
from recsim_env import artefacts
from recsim_env.errors import DataError

__all__ = ["content_of", "find_cells", "identity_of"]

_NAMES = ("environment", "label", "group", "device")


def identity_of(path: Path, *, file: str = CELL) -> dict[str, Any]:
    """Returns what is kept of a cell's identity; empty where none is.

    Args:
        path: Folder of a cell.
        file: The file with it.
    """
    values = json.loads((path / file).read_text(encoding="utf-8"))
    return dict(values.get("identity") or {})


def content_of(identity: Mapping[str, Any], *, spelled_out: bool = False) -> str:
    """Returns a hash that two cells share if they come to the same result whatever they are called.

    Args:
        identity: Of a cell, in terms of JSON.
        spelled_out: Whether a setting that is given its default counts like one that is left out;
            of use only between cells of the same code, since a default may change.
    """
    task = {name: value for name, value in identity["task"].items() if name not in _NAMES}
    if spelled_out:
        task["settings"] = _without_defaults(task["algorithm"], task["settings"])
    made_from = {name: identity.get(name) for name in ("train", "tests", "demonstrations")}
    return artefacts.key(task=task, spelled_out=spelled_out, **made_from)


def _without_defaults(algorithm: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    if algorithm in (*PLANNERS, DEMONSTRATIONS):
        return dict(settings)
    defaults = defaults_of(find_algorithm(algorithm).kind)
    return {
        name: value
        for name, value in settings.items()
        if name not in defaults or not _same(value, defaults[name])
    }


def _same(value: Any, default: Any) -> bool:
    """Returns whether a value from JSON is a default; True is not 1."""
    if isinstance(value, list) and isinstance(default, tuple):
        return len(value) == len(default) and all(map(_same, value, default))
    return isinstance(value, bool) == isinstance(default, bool) and bool(value == default)


def find_cells(folders: Iterable[Path], code: str) -> dict[str, Path]:
    """Returns the folders of finished cells by `content_of`; of equal ones, the first.

    Those of the present code are found with their defaults spelled out, too.

    Args:
        folders: Of runs.
        code: See `ilrec_sb3.cells.code_hash`.

    Raises:
        DataError: A folder is not there.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(
                f"{folder} is not there, so no cell can be taken from it: leave it out."
            )
        for file in sorted(folder.glob(f"cells/*/*/{CELL}")):
            if not artefacts.check_folder(file.parent):
                continue
            values = json.loads(file.read_text(encoding="utf-8"))
            identity = values.get("identity") or {}
            if "task" not in identity:
                continue
            for spelled_out in (False, True) if values.get("code") == code else (False,):
                found.setdefault(content_of(identity, spelled_out=spelled_out), file.parent)
    return found
