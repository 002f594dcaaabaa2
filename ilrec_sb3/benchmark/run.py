"""A grid of cells, made by several processes and put together in one report."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ilrec_sb3.baselines import find_algorithm
from ilrec_sb3.benchmark.grid import DemonstrationSpec, Grid, GridEnvironment, GridRow
from ilrec_sb3.benchmark.reuse import content_of, find_cells, identity_of
from ilrec_sb3.benchmark.stages import (
    Stages,
    demonstrations_hash,
    demonstrations_path,
    keep_demonstrations,
)
from ilrec_sb3.benchmark.workers import Died, in_parallel, locked
from ilrec_sb3.cells import (
    CELL,
    FAILED,
    CellResult,
    Stage,
    Task,
    check_comparable,
    code_hash,
    copy_cell,
    failed_result,
    read_cell,
    run_task,
    versions,
    write_cell,
    write_failure,
)
from recsim_env import artefacts
from recsim_env.errors import DataError, IlrecError, near_miss
from recsim_env.threads import one_thread
from recsim_env.trajectories import Trajectory, load_trajectories

if TYPE_CHECKING:
    from ilrec_sb3.benchmark.report import Background

__all__ = ["BenchmarkResult", "background", "run_benchmark"]

logger = logging.getLogger(__name__)

State = Literal["finished", "failed", "of other settings", "missing"]


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark came to.

    Attributes:
        folder: Where everything is kept.
        cells: All cells of the grid that are there, failed ones too.
        missing: How many are not there.
        failed: How many failed of those that were to be made.
        report: The report; None where none was written.
    """

    folder: Path
    cells: tuple[CellResult, ...]
    missing: int
    failed: int
    report: Path | None


@dataclass(frozen=True)
class _Plan:
    """A cell, where it is kept and what it is made from.

    Attributes:
        task: What it is to be.
        environment: Where.
        folder: Its folder.
        demonstrations: File of its demonstrations, None where it takes none.
        identity: In terms of JSON: what makes it the cell that it is.
    """

    task: Task
    environment: GridEnvironment
    folder: Path
    demonstrations: Path | None
    identity: Mapping[str, Any]

    @property
    def state(self) -> State:
        """How far it is."""
        if not artefacts.check_folder(self.folder):
            return "missing"
        if not (self.folder / CELL).exists():
            return "failed"
        found = identity_of(self.folder)
        same = all(found.get(name) == self.identity[name] for name in ("key", "demonstrations"))
        return "finished" if same else "of other settings"

    def take(self, source: Path) -> CellResult:
        """Takes over a finished cell that differs in its names alone."""
        return copy_cell(source, self.folder, self.task, identity=self.identity)


@dataclass(frozen=True)
class _Made:
    """What a worker says of a cell.

    Attributes:
        seconds: Wall time, evaluations included.
        mean: Mean return in the first test mode; None where it failed.
        failed: One line; None where it did not fail.
    """

    seconds: float
    mean: float | None
    failed: str | None


class _Maker:
    """Makes cells; what it has loaded serves the next one of the same environment.

    Args:
        stages: Of the grid.
        code: See `ilrec_sb3.cells.code_hash`.
        models: Whether trained models are kept.
    """

    def __init__(self, stages: Stages, code: str, models: bool) -> None:
        self.stages = stages
        self.code = code
        self.models = models
        self._demonstrations: tuple[Path | None, list[Trajectory]] = (None, [])

    def __call__(self, plan: _Plan) -> _Made:
        """Makes a cell and writes it, or that it failed and why."""
        started = time.perf_counter()
        try:
            with one_thread(), warnings.catch_warnings():
                # advice on CPUs and GPUs that nobody here can act on
                warnings.filterwarnings("ignore", category=UserWarning, module="stable_baselines3")
                mean = self._make(plan)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other cells go on
            reason = str(error) if isinstance(error, IlrecError) else f"{_name(error)}: {error}"
            self.fail(plan, reason, traceback.format_exc())
            return _Made(time.perf_counter() - started, None, reason)
        return _Made(time.perf_counter() - started, mean, None)

    def _make(self, plan: _Plan) -> float:
        cell, model = run_task(
            plan.task,
            self.stages.get(plan.environment),
            self._load(plan.demonstrations),
            code=self.code,
            planner_points=True,
        )
        write_cell(plan.folder, cell, model if self.models else None, identity=plan.identity)
        return float(next(iter(cell.episodes.values())).returns.mean(dtype=np.float64))

    def _load(self, path: Path | None) -> list[Trajectory]:
        if path is None:
            return []
        if self._demonstrations[0] != path:
            self._demonstrations = (path, load_trajectories(path))
        return self._demonstrations[1]

    def fail(self, plan: _Plan, reason: str, trace: str) -> None:
        """Writes that a cell failed.

        Raises:
            DataError: Not even that can be written, so it is of no use to make the others.
        """
        fingerprint = next(iter(plan.identity["tests"].values()))
        cell = failed_result(plan.task, fingerprint, reason, self.code)
        try:
            write_failure(plan.folder, cell, trace, identity=plan.identity)
        except OSError as error:
            cause = str(error.strerror or type(error).__name__).lower()
            raise DataError(
                f"{plan.folder} cannot be written ({cause}): mend that, and the same command goes "
                "on with what is finished."
            ) from error


def _name(error: BaseException) -> str:
    return type(error).__name__


def run_benchmark(
    grid: Grid,
    out: str | Path | None = None,
    *,
    data: str | None = None,
    cache: str | None = None,
    jobs: int = 1,
    only: Sequence[str] = (),
    environments: Sequence[str] = (),
    fresh: bool = False,
    reuse: Sequence[str | Path] = (),
    report_only: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    command: Sequence[str] = (),
    say: Callable[[str], None] = logger.info,
) -> BenchmarkResult:
    """Makes the cells of a grid that are missing, and the report of all that are there.

    Every cell is written whole when it is finished. A cell is found again by its settings, its
    environment and its demonstrations; other code does not make it another one, and the report says
    how many versions of the code its cells come from. Cells that differ in their names alone are
    made once.

    Args:
        grid: What to make.
        out: Folder of the run; None: ``runs/benchmark-NAME``.
        data: Folder with the raw data; None: ``ILREC_DATA``, else the user cache directory.
        cache: Folder of prepared artefacts; None: ``ILREC_CACHE``, else the user cache directory.
        jobs: Processes that make cells at the same time.
        only: Labels of rows, with ``*`` for any text; the others are left as they are.
        environments: Names of environments, likewise; the others are left as they are.
        fresh: Makes the chosen cells anew.
        reuse: Folders of other runs whose finished cells are taken where they are the same.
        report_only: Makes no cell.
        dry_run: Makes nothing, and says what would be made.
        progress: Shows progress bars while data are prepared.
        command: What was typed, to be kept and shown in the report.
        say: Takes lines that tell how far it is.

    Returns:
        The cells and the report.

    Raises:
        DataError: For data or settings that cannot be used, cells of different environments under
            one name, or where another process works in the folder.
    """
    folder = Path(out or f"runs/benchmark-{grid.name}")
    if report_only and not folder.is_dir():
        raise DataError(f"{folder} is not there, so there is no cell to report: make some first.")
    if fresh and reuse:
        raise DataError("fresh and reuse came, which ask for opposite things: leave one out.")
    stages = Stages(data, cache, progress)
    chosen = _choose(grid, only, environments)
    if dry_run:
        _say_plans(_plan(grid, chosen, folder, stages, write=False, replaced=fresh), fresh, say)
        return BenchmarkResult(folder, tuple(_reported(grid, folder)), 0, 0, None)
    with locked(folder):
        failed = 0
        if not report_only:
            code = code_hash()
            before = {} if fresh else find_cells([folder, *map(Path, reuse)], code)
            if fresh:
                # nothing is removed for a command that cannot be carried out
                plans = _plan(grid, chosen, folder, stages, write=False, replaced=True)
                _check_others(grid, plans, folder)
            _write_run(folder, grid, command)
            if fresh:
                _remove(folder, chosen, everything=not (only or environments))
            plans = _plan(grid, chosen, folder, stages)
            _check_others(grid, plans, folder)
            failed = _run(plans, _Maker(stages, code, grid.models), jobs, say, before)
        return _conclude(grid, folder, stages, command, failed, say)


def _choose(
    grid: Grid, only: Sequence[str], environments: Sequence[str]
) -> list[tuple[GridRow, Task]]:
    """Returns the cells that are asked for."""
    labels = list(dict.fromkeys(row.name for row in grid.rows))
    for label in only:
        if not any(_fits(name, label) for name in labels):
            raise DataError(f"No row is called {label!r}; {near_miss(label, labels)}.")
    for name in environments:
        if not any(_fits(there, name) for there in grid.environments):
            known = near_miss(name, grid.environments)
            raise DataError(f"The grid has no environment {name!r}; {known}.")
    chosen = [
        (row, task)
        for row, task in grid.tasks()
        if (not only or any(_fits(task.label, label) for label in only))
        and (not environments or any(_fits(task.environment, name) for name in environments))
    ]
    if not chosen:
        raise DataError(
            f"None of the rows asked for plays in {', '.join(map(repr, environments))}: choose "
            "other rows or environments."
        )
    return chosen


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _folder_of(folder: Path, task: Task) -> Path:
    return folder / "cells" / task.environment / task.name


def _plan(
    grid: Grid,
    chosen: Sequence[tuple[GridRow, Task]],
    folder: Path,
    stages: Stages,
    write: bool = True,
    replaced: bool = False,
) -> list[_Plan]:
    """Makes data and demonstrations ready, once, and returns the cells with what they need.

    Args:
        grid: The grid.
        chosen: The cells that are asked for.
        folder: Of the run.
        stages: Makes the environments.
        write: Whether demonstrations that are not there are made.
        replaced: Whether cells that are there will be removed, whatever they were made in.
    """
    contents: dict[Path, str] = {}
    plans = []
    for row, task in chosen:
        environment = grid.environments[task.environment]
        stage = stages.get(environment)
        path: Path | None = None
        content: str | None = None
        if row.takes_demonstrations:
            spec = row.demonstrations or DemonstrationSpec()
            path = demonstrations_path(folder, task.environment, spec, stage)
            if write:
                keep_demonstrations(path, spec, stage, stages.data)
            if path not in contents and path.exists():
                contents[path] = demonstrations_hash(load_trajectories(path))
            content = contents.get(path)
        identity = {
            "key": task.key,
            "train": stage.train.fingerprint,
            "tests": {mode: test.fingerprint for mode, test in stage.tests.items()},
            "demonstrations": content,
            "task": _as_json(asdict(task)),
        }
        plans.append(_Plan(task, environment, _folder_of(folder, task), path, identity))
        if not replaced:
            _check_environment(plans[-1].folder, plans[-1])
    return plans


def _check_others(grid: Grid, plans: Sequence[_Plan], folder: Path) -> None:
    """Refuses to make cells beside finished ones of the grid that they cannot be compared with."""
    planned = {plan.folder for plan in plans}
    first = {plan.task.environment: plan for plan in reversed(plans)}
    for _, task in grid.tasks():
        path = _folder_of(folder, task)
        if task.environment in first and path not in planned:
            _check_environment(path, first[task.environment])


def _check_environment(path: Path, plan: _Plan) -> None:
    """Refuses a finished cell that was made in another environment of the same name.

    Args:
        path: Folder of the cell.
        plan: A cell that is to be made in that environment.
    """
    if not artefacts.check_folder(path) or not (path / CELL).exists():
        return
    found = identity_of(path)
    for name in ("train", "tests"):
        if found.get(name) != plan.identity[name]:
            raise DataError(
                f"{path} was made in another environment of the name "
                f"{plan.task.environment!r} (other data, rules or rewards), so it cannot be "
                "compared with new cells: make all anew with --fresh, or in another folder with "
                "--out."
            )


def _as_json(values: Any) -> Any:
    return json.loads(json.dumps(values))


def _say_plans(plans: Sequence[_Plan], fresh: bool, say: Callable[[str], None]) -> None:
    states = Counter("to be made anew" if fresh else plan.state for plan in plans)
    for plan in plans:
        task = plan.task
        steps = f", {task.steps:,} steps" if task.seed is not None else ""
        say(f"{task.environment}/{task.name}: {'to be made' if fresh else plan.state}{steps}")
    say(f"{len(plans)} cells: {', '.join(f'{n} {state}' for state, n in states.items())}.")


# -- making the cells ------------------------------------------------------------------------------


def _run(
    plans: Sequence[_Plan],
    maker: _Maker,
    jobs: int,
    say: Callable[[str], None],
    before: Mapping[str, Path],
) -> int:
    """Makes what is missing and returns how many cells failed.

    Args:
        plans: The cells that are asked for.
        maker: Makes one.
        jobs: Processes.
        say: Takes lines that tell how far it is.
        before: Folders of finished cells by `content_of`.
    """
    states = [plan.state for plan in plans]
    clock = _Clock(jobs)
    taken = 0
    same: dict[str, list[_Plan]] = {}
    for plan, state in zip(plans, states, strict=True):
        contents = [content_of(plan.identity, spelled_out=out) for out in (False, True)]
        source = next((before[content] for content in contents if content in before), None)
        if state == "finished":
            clock.add(plan.task, read_cell(plan.folder).seconds)
        elif source is not None:
            clock.add(plan.task, plan.take(source).seconds)
            taken += 1
        else:
            same.setdefault(contents[1], []).append(plan)
    groups = list(same.values())
    left = [group[0] for group in groups]
    found = Counter(states)
    say(f"{len(left)} cells to make{_found(found)}{_taken(taken, groups)}.")
    failed = 0
    open_plans = dict(enumerate(left))
    with closing(in_parallel(maker, left, min(jobs, max(len(left), 1)))) as outcomes:
        for number, made in outcomes:
            plan = open_plans.pop(number)
            if isinstance(made, Died):
                maker.fail(plan, str(made), f"{made}\n")
                made = _Made(0.0, None, str(made))
            said = f"[{len(left) - len(open_plans)}/{len(left)}] {_title(plan.task)}"
            twins = groups[number][1:]
            if made.mean is None:
                failed += 1 + len(twins)
                for other in twins:
                    maker.fail(other, str(made.failed), f"As {plan.task.name}.\n")
                say(f"{said} FAILED: {' '.join(str(made.failed).split())}")
                continue
            for other in twins:
                other.take(plan.folder)
            clock.add(plan.task, made.seconds)
            rest = clock.left([other.task for other in open_plans.values()])
            say(f"{said}: return {made.mean:.1f} after {_duration(made.seconds)}{rest}")
    return failed


def _found(states: Mapping[State, int]) -> str:
    """Returns a phrase of what was there before."""
    said: dict[State, str] = {
        "finished": "are finished",
        "failed": "failed before and are tried again",
        "of other settings": "were made with other settings and are made anew",
    }
    return "".join(f", {states[state]} {text}" for state, text in said.items() if states[state])


def _taken(taken: int, groups: Sequence[Sequence[_Plan]]) -> str:
    """Returns a phrase of what needs no making though it was not there."""
    doubles = sum(len(group) - 1 for group in groups)
    said = f", {taken} were made before under another name" if taken else ""
    return said + (f", {doubles} will be the same as another one" if doubles else "")


def _title(task: Task) -> str:
    seed = "" if task.seed is None else f", seed {task.seed}"
    return f"{task.environment}: {task.label}{seed}"


class _Clock:
    """Guesses how long the rest will take from what is finished.

    A row takes as long as its other seeds did; without any, each of its steps takes as long as a
    step of the rows that count the same kind of steps.

    Args:
        jobs: Processes.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._seconds: dict[tuple[str, str], list[float]] = {}
        self._per_step: dict[bool, list[float]] = {}

    def add(self, task: Task, seconds: float) -> None:
        """Notes how long a cell took."""
        self._seconds.setdefault((task.environment, task.label), []).append(seconds)
        if task.seed is not None:
            rates = self._per_step.setdefault(find_algorithm(task.algorithm).offline, [])
            rates.append(seconds / task.steps)

    def left(self, tasks: Sequence[Task]) -> str:
        """Returns a phrase of how long the tasks that are left will take; "" where unknown."""
        guesses = [self._guess(task) for task in tasks]
        known = [guess for guess in guesses if guess is not None]
        if not known or len(known) < len(guesses):
            return ""
        return f"; about {_duration(max(sum(known) / self._jobs, max(known)))} left"

    def _guess(self, task: Task) -> float | None:
        same = self._seconds.get((task.environment, task.label))
        if same or task.seed is None:
            return float(np.mean(same)) if same else 0.0
        rates = self._per_step.get(find_algorithm(task.algorithm).offline)
        return float(np.mean(rates)) * task.steps if rates else None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


# -- putting it together ---------------------------------------------------------------------------


def _reported(grid: Grid, folder: Path) -> Iterator[CellResult]:
    """Yields the cells of the grid that are there, with the labels and groups of today's grid."""
    for _, task in grid.tasks():
        path = _folder_of(folder, task)
        if not artefacts.check_folder(path):
            continue
        file = next(name for name in (CELL, FAILED) if (path / name).exists())
        if identity_of(path, file=file).get("key") != task.key:
            continue
        yield replace(read_cell(path), label=task.label, group=task.group)


def _conclude(
    grid: Grid,
    folder: Path,
    stages: Stages,
    command: Sequence[str],
    failed: int,
    say: Callable[[str], None],
) -> BenchmarkResult:
    """Writes the report of the cells that are there."""
    cells = tuple(_reported(grid, folder))
    missing = sum(1 for _ in grid.tasks()) - len(cells)
    if not cells:
        raise DataError(f"{folder} holds no cell of the grid yet: make some without --report-only.")
    check_comparable(cells)
    played = {cell.environment for cell in cells}
    backgrounds = {
        name: background(name, environment, stages.get(environment))
        for name, environment in grid.environments.items()
        if name in played
    }
    from ilrec_sb3.benchmark.report import write_report

    report = write_report(
        folder,
        cells,
        backgrounds,
        title=grid.title or grid.name,
        command=shlex.join(command),
    )
    if missing:
        say(f"{missing} cells of the grid are not there yet; the report is of the others.")
    return BenchmarkResult(folder, cells, missing, failed, report)


def background(name: str, environment: GridEnvironment, stage: Stage) -> Background:
    """Returns what the report has to know of an environment.

    Args:
        name: Of the environment.
        environment: Its settings.
        stage: Where it is played.
    """
    from ilrec_sb3.benchmark.report import Background

    prepared = stage.train.prepared
    rows = prepared.dataset.interactions
    known = prepared.train_rows if rows.order is None else prepared.train_rows & (rows.order >= 0)
    return Background(
        environment=name,
        title=environment.title or name,
        n_items=prepared.dataset.n_items,
        categories=stage.train.categories,
        category_names=prepared.dataset.catalogue.category_names,
        popularity=np.bincount(rows.items[known], minlength=prepared.dataset.n_items),
        text=stage.train.text,
    )


# -- the folder ------------------------------------------------------------------------------------


def _write_run(folder: Path, grid: Grid, command: Sequence[str]) -> None:
    """Writes what the run is, and sweeps up what a killed one left half-written."""
    for half in folder.glob("cells/*/.*"):
        shutil.rmtree(half, ignore_errors=True)
    artefacts.write_file(folder / "grid.json", json.dumps(asdict(grid), indent=1) + "\n")
    artefacts.write_file(folder / "command.txt", f"{shlex.join(command) or 'run_benchmark'}\n")
    described = json.dumps(versions(code_hash()), indent=1)
    artefacts.write_file(folder / "versions.json", described + "\n")


def _remove(folder: Path, chosen: Sequence[tuple[GridRow, Task]], everything: bool) -> None:
    """Removes the cells that are to be made anew."""
    if everything:
        for name in ("cells", "demonstrations"):
            shutil.rmtree(folder / name, ignore_errors=True)
    for _, task in chosen:
        shutil.rmtree(_folder_of(folder, task), ignore_errors=True)
