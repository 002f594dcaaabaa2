"""A trained recommender as one zip of JSON and safetensors."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch as th
from safetensors import SafetensorError
from safetensors.torch import load, save

from recsim_env.artefacts import write_file
from recsim_env.errors import ArtefactError

__all__ = ["read_model", "write_model"]

_FORMAT = "ilrec lea 1"
_ABOUT, _WEIGHTS = "about.json", "weights.safetensors"


def write_model(
    path: str | Path, about: Mapping[str, Any], weights: Mapping[str, th.Tensor]
) -> Path:
    """Writes a model, whole or not at all; the same model gives the same bytes.

    Args:
        path: Where to; ".zip" is added where the name has no ending.
        about: JSON values.
        weights: Tensors by name.

    Returns:
        The path written.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        # ZipInfo has a fixed date where none is given.
        text = json.dumps({"format": _FORMAT, **about}, indent=1, sort_keys=True)
        archive.writestr(zipfile.ZipInfo(_ABOUT), text)
        tensors = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
        archive.writestr(zipfile.ZipInfo(_WEIGHTS), save(tensors))
    return write_file(_with_ending(path), content.getvalue())


def read_model(path: str | Path) -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    """Reads what `write_model` wrote.

    Args:
        path: The file; ".zip" is added where the name has no ending.

    Raises:
        ArtefactError: The file is missing, broken or something else.
    """
    file = _with_ending(path)
    try:
        with zipfile.ZipFile(file) as archive:
            about = json.loads(archive.read(_ABOUT))
            weights = load(archive.read(_WEIGHTS))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, SafetensorError) as error:
        raise ArtefactError(
            f"{file} cannot be read as a recommender ({error}), expected a file that LEA.save "
            "wrote; check the path or train it again."
        ) from error
    if about.get("format") != _FORMAT:
        raise ArtefactError(
            f"{file} is marked {about.get('format')!r}, expected {_FORMAT!r}; it comes from "
            "another version, so train it again."
        )
    return about, weights


def _with_ending(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")
