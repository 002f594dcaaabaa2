"""The file that says what an experiment with LEA's recommenders is made of.

A grid is written in TOML. Every name in it is checked, and an unknown one is refused with the
nearest that is known.
"""

from __future__ import annotations

import itertools
import tomllib
from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ilrec_sb3.cells import cell_name
from ilrec_sb3.lea.networks import BACKBONES
from ilrec_sb3.lea.training import Candidates, all_settings, check_backbone, check_settings
from ilrec_sb3.lea.variants import Variant
from recsim_env import artefacts
from recsim_env.command_line import device
from recsim_env.errors import DataError, MissingDataError, near_miss
from recsim_env.sequences import SequenceData
from recsim_env.settings import check_range, check_types, from_mapping

__all__ = [
    "CELLS",
    "FEEDBACKS",
    "GridDataset",
    "RecommenderGrid",
    "RecommenderRow",
    "RecommenderTask",
    "load_recommender_grid",
]

CELLS, FEEDBACKS = "cells", "feedback"
"""Folders of a run that its grids share."""

_FOLDERS = (CELLS, FEEDBACKS)
_DIGITS = 16


@dataclass(frozen=True)
class GridDataset:
    """A dataset of a grid.

    Attributes:
        dataset: Name of the sequences, or of data of your own.
        options: Options of these.
        settings: Of the recommenders, in addition to the grid's.
        feedback: Options of the environment, in addition to the grid's.
        title: What the report calls it; None: its name in the grid.
        steps: Gradient steps at most, in the place of the grid's; None: these.
        evaluate_every: Steps between two evaluations, likewise.
    """

    dataset: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    feedback: Mapping[str, Any] = field(default_factory=dict)
    title: str | None = None
    steps: int | None = None
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        """Checks types."""
        check_types(self)
        check_range(self, "steps", "evaluate_every", least=1)
        check_settings(self.settings)
        if "evaluate_every" in self.settings:
            raise DataError(
                "evaluate_every came among the settings of a dataset; it belongs beside them."
            )


@dataclass(frozen=True)
class RecommenderRow:
    """A row of the tables.

    Attributes:
        variant: Its name, see `ilrec_sb3.lea.variants`.
        label: What the tables call it; None: the variant.
        baseline: Label of the row that it is compared with; None: that of its framework, where the
            grid has it.
        backbones: None: the grid's.
        datasets: Names in the grid; None: all.
        settings: Of the recommender, in addition to the grid's and the dataset's.
        feedback: Options of the environment, in addition to the grid's and the dataset's.
    """

    variant: str
    label: str | None = None
    baseline: str | None = None
    backbones: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    feedback: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks types and names."""
        check_types(self)
        known = Variant.parse(self.variant)
        check_settings(self.settings)
        for name in ("backbones", "datasets"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in self.backbones or ():
            check_backbone(name)
        if self.feedback and not known.needs:
            raise DataError(
                f"The row {self.name!r} came with options of the environment, of which "
                f"{self.variant} needs nothing: leave them out."
            )

    @property
    def name(self) -> str:
        """What the tables call it."""
        return self.label or self.variant


@dataclass(frozen=True)
class RecommenderTask:
    """What a cell is to be.

    Attributes:
        dataset: Its name in the grid.
        backbone: "SASRec" or "GRU4Rec".
        variant: Its name.
        label: Row of the table.
        seed: Of the training.
        steps: Gradient steps at most.
        settings: Arguments of `LEA`, and fields of `NetworkConfig`.
        feedback: Options of the environment; empty where the variant needs nothing of it.
        candidates: Whose best items the environment chooses from; None likewise.
        environment: Name of its entry point; None: the first, or none is needed.
    """

    dataset: str
    backbone: str
    variant: str
    label: str
    seed: int
    steps: int
    settings: Mapping[str, Any]
    feedback: Mapping[str, Any]
    candidates: Candidates | None
    environment: str | None = None

    @property
    def name(self) -> str:
        """What it is called, as a path: dataset, backbone, row and seed."""
        label = self.label.replace("'", "-prime")  # lest LES' be LES
        return f"{self.dataset}/{self.backbone}/{cell_name(label, self.seed)}"

    @property
    def needs_feedback(self) -> bool:
        """Whether the environment has to say something first."""
        return self.candidates is not None

    def folder(self, key: str) -> str:
        """Returns the path of its folder below that of all cells.

        Args:
            key: See `key`.
        """
        return f"{self.name}-{key[:_DIGITS]}"

    def feedback_name(self, data: SequenceData, environment: Mapping[str, Any]) -> str:
        """Returns the name of its feedback's folder.

        Args:
            data: The sequences.
            environment: As in `key`.
        """
        key = artefacts.key(data=data.fingerprint, **self._feedback(data, environment))
        return f"{self.backbone}-{key[:_DIGITS]}"

    def key(self, data: SequenceData, environment: Mapping[str, Any]) -> str:
        """Returns the hash of all that decides its result, defaults too, the code left out.

        Args:
            data: The sequences.
            environment: All settings of the environment, as it tells them; empty without one.
        """
        return artefacts.key(
            data=data.fingerprint,
            backbone=self.backbone,
            variant=self.variant,
            seed=self.seed,
            steps=self.steps,
            settings=all_settings(self.settings),
            **self._feedback(data, environment),
        )

    def _feedback(self, data: SequenceData, environment: Mapping[str, Any]) -> dict[str, Any]:
        candidates = None if self.candidates is None else self.candidates.spelled_out(data)
        return {"environment": [self.environment, environment], "candidates": candidates}


@dataclass(frozen=True)
class RecommenderGrid:
    """What an experiment is made of.

    Under SNQN and SA2C the network that is served is trained by half of the gradient steps (see
    `LEA`). So that all variants see as many of its steps between two evaluations, and before they
    end, ``steps`` and ``evaluate_every`` count for two there.

    Attributes:
        name: Of the grid.
        datasets: By name.
        variants: One row for each, with the grid's settings.
        rows: Further rows.
        title: Of the report; None: the name.
        run: The run is kept in ``runs/lea-RUN``; None: the name. Grids of one run have all cells
            and feedback in common that are alike; the report of each is in a folder of its name.
        backbones: On which the rows are trained.
        seeds: One training for each.
        steps: Gradient steps of the served network at most, where a dataset says nothing else.
        evaluate_every: Such steps between two evaluations, likewise.
        settings: Arguments of `LEA`, and fields of `NetworkConfig`.
        feedback: Options of the environment.
        environment: Name of its entry point; None: the first.
        models: Whether trained models are kept.
        device: "cpu", "cuda" or "auto"; None: "auto".
    """

    name: str
    datasets: Mapping[str, GridDataset]
    variants: tuple[str, ...] = ()
    rows: tuple[RecommenderRow, ...] = ()
    title: str | None = None
    run: str | None = None
    backbones: tuple[str, ...] = BACKBONES
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 20_000
    evaluate_every: int = 500
    settings: Mapping[str, Any] = field(default_factory=dict)
    feedback: Mapping[str, Any] = field(default_factory=dict)
    environment: str | None = None
    models: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        """Checks types and names."""
        check_types(self)
        for name in ("variants", "rows", "backbones", "seeds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_settings(self.settings)
        if self.device is not None:
            try:
                device(self.device)
            except ArgumentTypeError as error:
                raise DataError(f"device={error}.") from error
        if "evaluate_every" in self.settings:
            raise DataError("evaluate_every came among the settings; it belongs to the grid.")
        if self.steps < 1 or self.evaluate_every < 1 or min(self.seeds, default=-1) < 0:
            raise DataError(
                f"steps={self.steps}, evaluate_every={self.evaluate_every} and "
                f"seeds={list(self.seeds)} came; expected steps of 1 or more and at least one seed "
                "of 0 or more."
            )
        named = tuple(RecommenderRow(variant) for variant in self.variants)
        object.__setattr__(self, "rows", (*named, *self.rows))
        object.__setattr__(self, "variants", ())
        if not self.rows or not self.datasets or not self.backbones:
            raise DataError(
                f"The grid {self.name!r} has {len(self.rows)} rows, {len(self.datasets)} datasets "
                f"and {len(self.backbones)} backbones; give variants or [[rows]], and at least one "
                "[datasets.NAME]."
            )
        self._check_names()
        self._check_rows()

    def _check_names(self) -> None:
        for name in (self.name, self.run_name, *self.datasets):
            if cell_name(name, None) != name:
                raise DataError(
                    f"The name {name!r} came; expected letters, digits, - and _, as a folder is "
                    "named after it."
                )
        if self.run_name != self.name and self.name in _FOLDERS:
            raise DataError(
                f"The grid {self.name!r} came with run={self.run!r}, whose folder of that name "
                "holds something else: give the grid another name."
            )

    def _check_rows(self) -> None:
        labels = [row.name for row in self.rows]
        for row in self.rows:
            for name in row.datasets or ():
                if name not in self.datasets:
                    raise DataError(
                        f"The row {row.name!r} names the dataset {name!r}, which the grid has not; "
                        f"{near_miss(name, self.datasets)}."
                    )
            if row.baseline is not None and row.baseline not in labels:
                raise DataError(
                    f"The row {row.name!r} is compared with {row.baseline!r}, which the grid has "
                    f"not; {near_miss(row.baseline, labels)}."
                )
        for name in self.backbones:
            check_backbone(name)
        folders = [task.name.casefold() for task in self.tasks()]
        twice = next((name for name in folders if folders.count(name) > 1), None)
        if twice is not None:
            raise DataError(
                f"Two cells would share the folder {twice}: give one of the rows another label, "
                "and no seed twice."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecommenderGrid:
        """Builds a grid from nested mappings, as TOML gives them.

        Raises:
            DataError: For a name that is no setting, or a value that does not fit.
        """
        nested = dict(values)
        datasets, rows = nested.get("datasets", {}), nested.get("rows", [])
        tables = isinstance(datasets, Mapping) and isinstance(rows, (list, tuple))
        if not tables or not all(isinstance(t, Mapping) for t in (*datasets.values(), *rows)):
            raise DataError(
                "datasets or rows of another form came; expected [datasets.NAME] and [[rows]]."
            )
        for what, needed, all_tables in (
            ("row", "variant", rows),
            ("dataset", "dataset", datasets.values()),
            ("grid", "name", [nested]),
        ):
            lacking = next((table for table in all_tables if needed not in table), None)
            if lacking is not None:
                raise DataError(f"A {what} came without {needed!r}: give it one.")
        nested["datasets"] = {n: from_mapping(GridDataset, t) for n, t in datasets.items()}
        nested["rows"] = tuple(from_mapping(RecommenderRow, row) for row in rows)
        return from_mapping(cls, nested)

    @property
    def run_name(self) -> str:
        """What its run is called, see `run`."""
        return self.name if self.run is None else self.run

    def only(self, dataset: str) -> RecommenderGrid:
        """Returns the part of the grid on one of its datasets: the same cells, another report.

        Args:
            dataset: Its name.
        """
        rows = tuple(
            replace(row, datasets=None)
            for row in self.rows
            if row.datasets is None or dataset in row.datasets
        )
        return replace(
            self,
            name=f"{self.name}-{dataset}",
            run=self.run_name,
            datasets={dataset: self.datasets[dataset]},
            rows=rows,
        )

    def report_folder(self, run: Path) -> Path:
        """Returns where its report goes.

        Args:
            run: Folder of the run.
        """
        return run if self.run_name == self.name else run / self.name

    def steps_on(self, name: str) -> tuple[int, int]:
        """Returns the steps at most, and those between two evaluations, on one of its datasets."""
        dataset = self.datasets[name]
        return dataset.steps or self.steps, dataset.evaluate_every or self.evaluate_every

    def baseline(self, row: RecommenderRow) -> str | None:
        """Returns the label of the row that a row is compared with, if there is one."""
        if row.baseline is not None:
            return row.baseline
        framework = Variant.parse(row.variant).framework
        labels = [other.name for other in self.rows]
        return framework if framework in labels and row.name != framework else None

    def tasks(self) -> Iterator[RecommenderTask]:
        """Yields the cells, seed by seed."""
        for seed, name, row in itertools.product(self.seeds, self.datasets, self.rows):
            if row.datasets is not None and name not in row.datasets:
                continue
            for backbone in self.backbones if row.backbones is None else row.backbones:
                yield self._task(name, row, backbone, seed)

    def _task(self, name: str, row: RecommenderRow, backbone: str, seed: int) -> RecommenderTask:
        dataset, variant = self.datasets[name], Variant.parse(row.variant)
        shared = {**self.settings, **dataset.settings}
        times = 2 if variant.learns_q else 1
        steps, every = self.steps_on(name)
        length = {n: value for n, value in row.settings.items() if n == "length"}
        own = {"evaluate_every": every, **shared, **length}
        return RecommenderTask(
            dataset=name,
            backbone=backbone,
            variant=row.variant,
            label=row.name,
            seed=seed,
            steps=steps * times,
            settings={"evaluate_every": every * times, **shared, **row.settings},
            feedback={**self.feedback, **dataset.feedback, **row.feedback} if variant.needs else {},
            candidates=Candidates(backbone, steps, 0, own) if variant.needs else None,
            environment=self.environment if variant.needs else None,
        )


def load_recommender_grid(path: str | Path) -> RecommenderGrid:
    """Reads a grid file.

    Raises:
        DataError: It is not there, no TOML, or says what cannot be understood.
    """
    file = Path(path)
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
        return RecommenderGrid.from_dict(values)
    except FileNotFoundError as error:
        raise MissingDataError(
            f"{file} is not there; name a grid file, such as benchmarks/lea/table2.toml."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{file} is not TOML ({error}); expected a grid of LEA.") from error
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
