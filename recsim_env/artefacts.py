"""Folders of results on disk: named by what made them, written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from recsim_env.errors import ArtefactError

__all__ = [
    "MANIFEST",
    "cache_dir",
    "check_folder",
    "fingerprint_bytes",
    "key",
    "write_file",
    "write_folder",
]

MANIFEST = "manifest.json"


def cache_dir(root: str | Path | None = None) -> Path:
    """Returns the folder that keeps artefacts; it need not exist yet.

    Args:
        root: The folder itself. None: the environment variable `ILREC_CACHE`, and without that the
            user's cache directory.
    """
    if root is not None:
        return Path(root).expanduser()
    from_environment = os.environ.get("ILREC_CACHE")
    if from_environment:
        return Path(from_environment).expanduser()
    return Path(platformdirs.user_cache_dir("ilrec"))


def key(**parts: Any) -> str:
    """Returns the sha256 (hex) of the canonical JSON of `parts`.

    Equal settings give equal keys whatever their order; any changed value gives another key. A
    dataclass's fields that are None are left out: a new optional setting leaves old keys as they
    are.

    Args:
        **parts: JSON values, dataclasses, paths, and numpy scalars or arrays.

    Raises:
        ArtefactError: A value has no canonical form (an object, NaN, an infinity).
    """
    try:
        text = json.dumps(_canonical(parts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArtefactError(
            f"A key cannot be made of {sorted(parts)}: {error}; expected JSON values, dataclasses, "
            "paths or finite numpy values, so convert the odd one first."
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """Returns `value` in terms of JSON types, dictionaries with string keys."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        told = {name: _canonical(item) for name, item in fields.items() if item is not None}
        return {"": type(value).__name__, **told}
    if isinstance(value, Mapping):
        return {str(name): _canonical(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_canonical(item) for item in value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


def fingerprint_bytes(*chunks: bytes) -> str:
    """Returns the sha256 (hex) of byte strings; where one ends and the next begins matters."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(len(chunk).to_bytes(8, "little"))
        digest.update(chunk)
    return digest.hexdigest()


def write_file(path: str | Path, content: bytes | str) -> Path:
    """Writes a file so that a reader sees the old content or the new, never a part.

    Args:
        path: Where to; its folder is made.
        content: Bytes, or text that is written as UTF-8.

    Returns:
        The path.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(target)
    try:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        _sync(beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    _sync(target.parent)
    return target


def write_folder(path: str | Path, writer: Callable[[Path], None]) -> Path:
    """Writes a folder whole or not at all.

    `writer` fills a new folder beside the target; then a manifest with the size and the sha256 of
    every file is written, all is flushed to disk, and the new folder takes the target's place. An
    error in `writer`, or a crash, leaves the target as it was.

    Args:
        path: The folder; one that is there is replaced.
        writer: Called once with the (empty) folder to fill.

    Returns:
        The path.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(target)
    beside.mkdir()
    try:
        writer(beside)
        files = {file.relative_to(beside).as_posix(): _stamp(file) for file in _files_below(beside)}
        for name in files:
            _sync(beside / name)
        write_file(beside / MANIFEST, json.dumps({"files": files}, indent=1, sort_keys=True))
        _swap(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    _sync(target.parent)
    return target


def check_folder(path: str | Path) -> bool:
    """Returns whether a folder is whole: its manifest is there and every file fits it.

    Files that the manifest does not name are ignored.
    """
    folder = Path(path)
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all(_stamp(folder / name) == stamp for name, stamp in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _files_below(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST
    )


def _stamp(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {
            "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
            "size": file.stat().st_size,
        }


def _beside(target: Path) -> Path:
    """Returns a fresh hidden name in the target's folder, hence on the same file system."""
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")


def _swap(new: Path, target: Path) -> None:
    """Puts `new` in the place of `target`; of two writers at once, the later one wins."""
    while True:
        old = _beside(target)
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        try:
            new.rename(target)
        except OSError as error:
            # Another writer was quicker: replace its folder. A third one may have taken it away
            # since, so that the error says more than a look at the target.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not target.is_dir():
                raise
            continue
        finally:
            shutil.rmtree(old, ignore_errors=True)
        return


def _sync(path: Path) -> None:
    """Flushes a file or a folder to disk, where the system can."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
