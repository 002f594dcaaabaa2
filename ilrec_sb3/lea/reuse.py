"""Finished cells on their way to another run: from its folder, or from the file beside a report."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ilrec_sb3.lea.cells import CURVE, METRICS, RANKS, Plan, read_json
from ilrec_sb3.lea.grid import CELLS
from ilrec_sb3.lea.metrics import CUTOFFS
from recsim_env import artefacts
from recsim_env.errors import ArtefactError, DataError

__all__ = ["CELLS_FILE", "FoundCell", "find_cells", "write_cells"]

CELLS_FILE = "cells.parquet"
"""What a report was made from, beside it: a row for each cell, in a kilobyte or two."""

_PAST = max(CUTOFFS) + 1
"""What ranks that no metric looks at are kept as."""

_COLUMNS = ("name", "key", "metrics", "curve", "ranks")


_Writer = Callable[[Path], None]


@dataclass(frozen=True, eq=False)
class FoundCell:
    """A finished cell that was made before.

    Attributes:
        plan: Of the cell.
        write: Fills a folder with it.
    """

    plan: Plan
    write: _Writer

    def take(self) -> None:
        """Writes its folder, whole or not at all."""
        artefacts.write_folder(self.plan.folder, self.write)


def write_cells(path: Path, plans: Iterable[Plan]) -> Path:
    """Writes finished cells into one file that `find_cells` reads.

    A row has the cell's name, the key of all that decides its result, what was measured (JSON), the
    learning curve (CSV) and the ranks of the test targets, from 1 on. Places after the last one
    that a metric looks at count as the next one, here and in what is taken from the file.

    Args:
        path: The file.
        plans: Of the cells.
    """
    rows = []
    for plan in plans:
        found = pq.read_table(plan.folder / RANKS)["rank"].to_numpy()
        texts = [(plan.folder / name).read_text(encoding="utf-8") for name in (METRICS, CURVE)]
        rows.append((plan.task.name, plan.key, *texts, np.minimum(found, _PAST)))
    columns = zip(*rows, strict=True) if rows else [()] * len(_COLUMNS)
    types = (*[pa.string()] * (len(_COLUMNS) - 1), pa.list_(pa.uint8()))
    arrays = [pa.array(list(one), kind) for one, kind in zip(columns, types, strict=True)]
    stream = io.BytesIO()
    pq.write_table(pa.table(arrays, names=list(_COLUMNS)), stream, compression="zstd")
    return artefacts.write_file(path, stream.getvalue())


def find_cells(sources: Sequence[str | Path], plans: Sequence[Plan]) -> list[FoundCell]:
    """Returns where cells that are not finished can be taken from.

    A cell is found by the key of all that decides its result, whatever it is called there.

    Args:
        sources: Folders of runs, folders of reports, or files that `write_cells` wrote. Of equal
            cells the first is taken.
        plans: Cells.

    Raises:
        DataError: A source is not there, or holds no cells.
        ArtefactError: A file is not one of cells.
    """
    wanted = {plan.key: plan for plan in plans if plan.state != "finished"}
    found = []
    for source in map(Path, sources):
        for key, write in _cells_of(source):
            plan = wanted.pop(key, None)
            if plan is not None:
                found.append(FoundCell(plan, write))
    return found


def _cells_of(source: Path) -> Iterator[tuple[str, _Writer]]:
    """Yields the keys of the cells of a source, and what writes each into a folder."""
    file = source / CELLS_FILE if source.is_dir() else source
    if (source / CELLS).is_dir():
        for metrics in sorted((source / CELLS).glob(f"*/*/*/{METRICS}")):
            if artefacts.check_folder(metrics.parent):
                yield read_json(metrics)["key"], _copying(metrics.parent)
    elif file.is_file():
        yield from _from_file(file)
    else:
        raise DataError(
            f"{source} came to take cells from, expected the folder of a run, or of a report with "
            f"{CELLS_FILE} in it, or that file: leave it out."
        )


def _copying(folder: Path) -> _Writer:
    def write(target: Path) -> None:
        for name in json.loads((folder / artefacts.MANIFEST).read_text(encoding="utf-8"))["files"]:
            (target / name).write_bytes((folder / name).read_bytes())

    return write


def _from_file(file: Path) -> Iterator[tuple[str, _Writer]]:
    try:
        rows = pq.read_table(file, columns=list(_COLUMNS)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ArtefactError(
            f"{file} cannot be read as cells of LEA ({error}), expected a {CELLS_FILE} that `ilrec "
            "lea benchmark` wrote beside a report."
        ) from error
    for row in rows:
        yield row["key"], _unpacking(row)


def _unpacking(row: dict[str, Any]) -> _Writer:
    def write(target: Path) -> None:
        (target / METRICS).write_text(row["metrics"], encoding="utf-8")
        (target / CURVE).write_text(row["curve"], encoding="utf-8")
        ranks = pa.table({"rank": pa.array(row["ranks"], pa.int32())})
        pq.write_table(ranks, target / RANKS, compression="zstd")

    return write
