"""Cells of an experiment with LEA's recommenders: made, kept and read.

A cell is one variant on one backbone, one dataset and one seed; its folder is written whole when it
is finished, and has a hash in its name of all that its result depends on: cells of other settings
are beside it, not in its place. A cell that failed leaves ``failed.json`` and ``traceback.txt``
instead.
"""

from __future__ import annotations

import csv
import json
import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ilrec_sb3.lea.feedback import STAGES, make_source, prepare_feedback, source_arguments
from ilrec_sb3.lea.grid import RecommenderGrid, RecommenderTask
from ilrec_sb3.lea.training import (
    Trained,
    load_data,
    make_recommender,
    train_recommender,
    write_curve,
)
from recsim_env import artefacts
from recsim_env.environment_feedback import EnvironmentFeedback
from recsim_env.errors import DataError, IlrecError
from recsim_env.sequences import SequenceData
from recsim_env.threads import one_thread

__all__ = [
    "CURVE",
    "FAILED",
    "METRICS",
    "RANKS",
    "Finished",
    "Made",
    "Maker",
    "Plan",
    "read_cell",
    "read_json",
]

logger = logging.getLogger(__name__)

METRICS, CURVE, RANKS = "metrics.json", "curve.csv", "ranks.parquet"
FAILED = "failed.json"
_MODEL, _TRACEBACK = "model.zip", "traceback.txt"


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished cell.

    Attributes:
        task: What it is.
        trained: What came of it.
        code: Hash of the package's code that made it.
    """

    task: RecommenderTask
    trained: Trained
    code: str


@dataclass(frozen=True)
class Plan:
    """A cell, where it is kept, and where its feedback is.

    Attributes:
        task: What it is to be.
        folder: Its folder.
        key: Of all that decides its result.
        feedback: File; None where none is needed.
    """

    task: RecommenderTask
    folder: Path
    key: str
    feedback: Path | None

    @property
    def state(self) -> str:
        """How far it is: "finished", "failed" or "missing"."""
        if not artefacts.check_folder(self.folder):
            return "missing"
        return "finished" if (self.folder / METRICS).exists() else "failed"


@dataclass(frozen=True)
class Made:
    """What a worker says of a piece of work.

    Attributes:
        said: One line of what came of it.
        seconds: Wall time.
        failed: One line; None where it did not fail.
    """

    said: str
    seconds: float
    failed: str | None = None


class Maker:
    """Prepares feedback and makes cells; what it has loaded serves the next one.

    Args:
        grid: The grid.
        root: Folder with the raw data.
        cache: Of prepared artefacts.
        code: Hash of the package's code.
        progress: Shows progress bars while feedback is made.
    """

    def __init__(
        self,
        grid: RecommenderGrid,
        root: str | None,
        cache: str | None,
        code: str,
        progress: bool = False,
    ) -> None:
        self.grid, self.root, self.cache, self.code = grid, root, cache, code
        self.progress = progress
        self._data: dict[str, SequenceData] = {}
        self._environments: dict[str, Mapping[str, Any]] = {}
        self._feedback: tuple[Path | None, EnvironmentFeedback | None] = (None, None)

    def data(self, name: str) -> SequenceData:
        """Returns the sequences of a dataset of the grid."""
        if name not in self._data:
            dataset = self.grid.datasets[name]
            self._data[name] = load_data(dataset.dataset, self.root, dataset.options, self.cache)
        return self._data[name]

    def environment(self, task: RecommenderTask) -> Mapping[str, Any]:
        """Returns all settings of the environment that a task asks; empty where it asks none.

        Raises:
            DataError: There is no such environment, or an option of it cannot be used.
        """
        if not task.needs_feedback:
            return {}
        asked = artefacts.key(environment=task.environment, options=task.feedback)
        if asked not in self._environments:
            source = make_source(task.environment)
            try:
                found = source.settings(source_arguments(source, task.feedback))
            except DataError as error:
                raise DataError(f"The row {task.label!r} on {task.dataset}: {error}") from error
            self._environments[asked] = found
        return self._environments[asked]

    def prepare(self, task: RecommenderTask, folder: Path) -> None:
        """Makes the feedback that a task needs.

        Args:
            task: The task.
            folder: Of the feedback; what the stages make is kept beside it.
        """
        assert task.candidates is not None
        source = make_source(task.environment)
        prepare_feedback(
            self.data(task.dataset),
            source,
            source_arguments(source, task.feedback),
            folder,
            candidates=task.candidates,
            stages=folder.parent / STAGES,
            device=self.grid.device,
            progress=self.progress,
        )

    def prepare_all(self, plans: Sequence[Plan]) -> dict[Path, Made]:
        """Makes the feedback of some plans, one after the other.

        Returns:
            What came of each file.
        """
        made = {}
        for plan in plans:
            assert plan.feedback is not None
            started = time.perf_counter()
            failed = None
            try:
                with one_thread():
                    self.prepare(plan.task, plan.feedback.parent)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
                failed = _reason(error)
                logger.info("%s", traceback.format_exc())
            said = f"feedback on {plan.task.dataset} for {plan.task.backbone}"
            made[plan.feedback] = Made(said, time.perf_counter() - started, failed)
        return made

    def __call__(self, plan: Plan) -> Made:
        """Makes a cell and writes it, or that it failed and why."""
        started = time.perf_counter()
        try:
            with one_thread():
                said = self._make(plan)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other cells go on
            self.fail(plan, _reason(error), traceback.format_exc())
            return Made("", time.perf_counter() - started, _reason(error))
        return Made(said, time.perf_counter() - started)

    def _make(self, plan: Plan) -> str:
        task = plan.task
        data = self.data(task.dataset)
        feedback = None
        if plan.feedback is not None:
            if self._feedback[0] != plan.feedback:
                self._feedback = (plan.feedback, EnvironmentFeedback.load(plan.feedback))
            feedback = self._feedback[1]
        model = make_recommender(
            task.backbone,
            data,
            task.variant,
            feedback,
            seed=task.seed,
            settings=task.settings,
            device=self.grid.device,
        )
        trained = train_recommender(model, task.steps)

        def write(folder: Path) -> None:
            about = {"key": plan.key, "task": asdict(task), "code": self.code}
            content = json.dumps({**about, **trained.described()}, indent=1)
            (folder / METRICS).write_text(content + "\n", encoding="utf-8")
            write_curve(folder / CURVE, trained.curve)
            table = pa.table({"rank": pa.array(trained.test_ranks, pa.int32())})
            pq.write_table(table, folder / RANKS, compression="zstd")
            if self.grid.models:
                model.save(folder / _MODEL)

        artefacts.write_folder(plan.folder, write)
        shown = trained.test or trained.valid
        said = [f"{n} {shown[n]:.4f}" for n in ("HR@10", "NDCG@10") if n in shown]
        return ", ".join(said + ["diverged"] * (trained.diverged is not None))

    def fail(self, plan: Plan, reason: str, trace: str) -> None:
        """Writes that a cell failed.

        Raises:
            OSError: Not even that can be written, so it is of no use to make the others.
        """

        def write(folder: Path) -> None:
            about = {"key": plan.key, "task": asdict(plan.task), "failed": reason}
            (folder / FAILED).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            (folder / _TRACEBACK).write_text(trace, encoding="utf-8")

        artefacts.write_folder(plan.folder, write)


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, IlrecError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a file of JSON."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def read_cell(plan: Plan) -> Finished:
    """Reads a finished cell.

    Args:
        plan: Of the cell.
    """
    values = read_json(plan.folder / METRICS)
    with (plan.folder / CURVE).open(encoding="utf-8", newline="") as stream:
        curve = [{n: float(v) for n, v in row.items()} for row in csv.DictReader(stream)]
    found = pq.read_table(plan.folder / RANKS)["rank"].to_numpy().astype(np.int64)
    names = ("valid", "test", "best_step", "steps", "seconds", "diverged")
    trained = Trained(curve=curve, test_ranks=found, **{name: values[name] for name in names})
    return Finished(plan.task, trained, values["code"])
