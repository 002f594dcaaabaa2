"""Experiments with LEA's recommenders: feedback made once, then the cells, then the report."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

import numpy as np

from ilrec_sb3.benchmark.text import duration
from ilrec_sb3.benchmark.workers import Died, in_parallel, locked
from ilrec_sb3.cells import code_hash, versions
from ilrec_sb3.lea.cells import FAILED, Made, Maker, Plan, read_cell
from ilrec_sb3.lea.feedback import FEEDBACK
from ilrec_sb3.lea.grid import CELLS, FEEDBACKS, RecommenderGrid, RecommenderTask
from ilrec_sb3.lea.report import Tested, write_recommender_report
from ilrec_sb3.lea.reuse import CELLS_FILE, find_cells, write_cells
from ilrec_sb3.lea.training import floor_ranks
from recsim_env import artefacts
from recsim_env.errors import DataError, near_miss

__all__ = ["begun_tasks", "run_recommender_benchmark"]

logger = logging.getLogger(__name__)


def run_recommender_benchmark(
    grid: RecommenderGrid,
    out: str | Path | None = None,
    *,
    data: str | None = None,
    cache: str | None = None,
    jobs: int = 1,
    only: Sequence[str] = (),
    datasets: Sequence[str] = (),
    fresh: bool = False,
    reuse: Sequence[str | Path] = (),
    report_only: bool = False,
    dry_run: bool = False,
    command: Sequence[str] = (),
    progress: bool = False,
    say: Callable[[str], None] = logger.info,
) -> tuple[Path | None, int]:
    """Makes the cells of a grid that are missing, and the report of all that are there.

    Feedback is made first, once for each dataset, backbone and set of options; then the cells. Both
    are kept under hashes of what they depend on, so that grids which share a run leave each other's
    in peace.

    Args:
        grid: What to make.
        out: Folder of the run; None: ``runs/lea-RUN``, see `RecommenderGrid`.
        data: Folder with the raw data; None: ``ILREC_DATA``, else the user cache directory.
        cache: Where data of your own are kept; None: ``ILREC_CACHE``, else the user's.
        jobs: Processes.
        only: Labels of rows, or their names with backbone, such as ``GRU4Rec/SA2C``; ``*`` stands
            for any text.
        datasets: Names in the grid, likewise.
        fresh: Makes the chosen cells anew; feedback stays.
        reuse: Where finished cells are taken from that are the same, see `find_cells`: folders of
            runs or reports, or files that came with a report.
        report_only: Makes no cell.
        dry_run: Makes nothing, and says what would be made.
        command: What was typed, to be kept and shown in the report.
        progress: Shows progress bars while feedback is made, where it is one process.
        say: Takes lines that tell how far it is.

    Returns:
        The report, None where none was written, and how many of the chosen cells failed.

    Raises:
        DataError: For data or settings that cannot be used, or where another process works in the
            folder.
    """
    folder = _folder(grid, out)
    if report_only and not reuse and not folder.is_dir():
        raise DataError(f"{folder} is not there, so there is no cell to report: make some first.")
    if fresh and reuse:
        raise DataError("fresh and reuse came, which ask for opposite things: leave one out.")
    # Bars of several processes would overwrite each other.
    maker = Maker(grid, data, cache, code_hash(), progress and jobs == 1)
    chosen = _chosen(grid, only, datasets)
    for task in chosen:  # options that do not fit are refused before anything is read
        maker.environment(task)
    plans = [_plan(maker, task, folder) for task in chosen]
    if dry_run:
        _say_plans(plans, fresh, reuse, say)
        return None, 0
    with locked(folder):
        failed = 0
        if reuse:
            cells = find_cells(reuse, plans)
            for cell in cells:
                cell.take()
            say(f"{len(cells)} cells are taken from where they were made before.")
        if not report_only:
            _write_run(folder, grid, command)
            if fresh:
                for plan in plans:
                    shutil.rmtree(plan.folder, ignore_errors=True)
            failed = _run(plans, maker, jobs, say)
        return _report(grid, folder, maker, command, say), failed


def _say_plans(
    plans: Sequence[Plan], fresh: bool, reuse: Sequence[str | Path], say: Callable[[str], None]
) -> None:
    """Says what would become of each cell."""
    found = {cell.plan.key for cell in find_cells(reuse, plans)}
    for plan in plans:
        state = "to be taken" if plan.key in found else plan.state
        say(f"{plan.task.name}: {'to be made anew' if fresh else state}")


def begun_tasks(
    grid: RecommenderGrid,
    out: str | Path | None = None,
    *,
    data: str | None = None,
    cache: str | None = None,
) -> list[RecommenderTask]:
    """Returns the tasks of a grid whose cells are there, those that failed too.

    Args:
        grid: The grid.
        out: As in `run_recommender_benchmark`.
        data: Likewise.
        cache: Likewise.
    """
    begun = _begun(grid, _folder(grid, out), Maker(grid, data, cache, ""))
    return [plan.task for plan, _ in begun]


def _folder(grid: RecommenderGrid, out: str | Path | None) -> Path:
    return Path(out or f"runs/lea-{grid.run_name}")


def _chosen(
    grid: RecommenderGrid, only: Sequence[str], datasets: Sequence[str]
) -> list[RecommenderTask]:
    tasks = list(grid.tasks())
    names = [{task.label, f"{task.backbone}/{task.label}"} for task in tasks]
    for pattern in only:
        if not any(_fits(own, pattern) for own in names):
            known = sorted({name for own in names for name in own})
            raise DataError(f"No row is called {pattern!r}; {near_miss(pattern, known)}.")
    for pattern in datasets:
        if not _fits(set(grid.datasets), pattern):
            known_sets = near_miss(pattern, grid.datasets)
            raise DataError(f"The grid has no dataset {pattern!r}; {known_sets}.")
    chosen = [
        task
        for task, own in zip(tasks, names, strict=True)
        if (not only or any(_fits(own, pattern) for pattern in only))
        and (not datasets or any(_fits({task.dataset}, pattern) for pattern in datasets))
    ]
    if not chosen:
        raise DataError(
            f"None of the rows asked for is trained on {', '.join(map(repr, datasets))}: choose "
            "other rows or datasets."
        )
    return chosen


def _fits(names: set[str], pattern: str) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)


def _plan(maker: Maker, task: RecommenderTask, folder: Path) -> Plan:
    feedback, data, environment = None, maker.data(task.dataset), maker.environment(task)
    if task.needs_feedback:
        name = task.feedback_name(data, environment)
        feedback = folder / FEEDBACKS / task.dataset / name / FEEDBACK
    key = task.key(data, environment)
    return Plan(task, folder / CELLS / task.folder(key), key, feedback)


def _begun(grid: RecommenderGrid, folder: Path, maker: Maker) -> list[tuple[Plan, str]]:
    """Returns the cells that are there, and whether they are finished or failed.

    The data of what was never begun need not be.
    """
    tasks = [task for task in grid.tasks() if any((folder / CELLS).glob(f"{task.name}-*"))]
    plans = [(plan, plan.state) for plan in (_plan(maker, task, folder) for task in tasks)]
    return [(plan, state) for plan, state in plans if state != "missing"]


def _run(plans: Sequence[Plan], maker: Maker, jobs: int, say: Callable[[str], None]) -> int:
    """Makes what is missing and returns how many cells failed."""
    left = [plan for plan in plans if plan.state != "finished"]
    say(f"{len(left)} cells to make, {len(plans) - len(left)} are finished.")
    broken = _prepare(left, maker, jobs, say)
    failed = 0
    for plan in [plan for plan in left if plan.feedback in broken]:
        reason = f"Its feedback could not be made: {broken[plan.feedback]}"
        maker.fail(plan, reason, f"{reason}\n")
        failed += 1
    left = [plan for plan in left if plan.feedback not in broken]
    seconds: list[float] = []
    with closing(in_parallel(maker, left, min(jobs, max(len(left), 1)))) as outcomes:
        for done, (number, outcome) in enumerate(outcomes, start=1):
            plan, made = left[number], outcome
            if isinstance(made, Died):
                maker.fail(plan, str(made), f"{made}\n")
                made = Made("", 0.0, str(made))
            said = f"[{done}/{len(left)}] {plan.task.name}"
            if made.failed is not None:
                failed += 1
                say(f"{said} FAILED: {made.failed}")
                continue
            seconds.append(made.seconds)
            rest = float(np.mean(seconds)) * (len(left) - done) / jobs
            more = f"; about {duration(rest)} left" if done < len(left) else ""
            say(f"{said}: {made.said} after {duration(made.seconds)}{more}")
    return failed


def _prepare(
    plans: Sequence[Plan], maker: Maker, jobs: int, say: Callable[[str], None]
) -> dict[Path | None, str]:
    """Makes the feedback that cells need; returns why some of it could not be made.

    Feedbacks of one dataset share what the stages make, so they are made one after the other.
    """
    first = {plan.feedback: plan for plan in plans if plan.feedback is not None}
    pieces = [
        [plan for plan in first.values() if plan.task.dataset == name]
        for name in dict.fromkeys(plan.task.dataset for plan in first.values())
    ]
    if pieces:
        names = ", ".join(piece[0].task.dataset for piece in pieces)
        say(f"Feedback first ({names}): what is missing is made, which can take long.")
    broken: dict[Path | None, str] = {}
    with closing(in_parallel(maker.prepare_all, pieces, min(jobs, max(len(pieces), 1)))) as found:
        for number, outcome in found:
            if isinstance(outcome, Died):
                lost = Made(f"feedback on {pieces[number][0].task.dataset}", 0.0, str(outcome))
                outcome = {cast(Path, plan.feedback): lost for plan in pieces[number]}
            for file, made in outcome.items():
                if made.failed is not None:
                    broken[file] = made.failed
                    say(f"{made.said} FAILED: {made.failed}")
                else:
                    say(f"{made.said}: there after {duration(made.seconds)}")
    return broken


def _report(
    grid: RecommenderGrid,
    folder: Path,
    maker: Maker,
    command: Sequence[str],
    say: Callable[[str], None],
) -> Path:
    tasks, plans = list(grid.tasks()), _begun(grid, folder, maker)
    made = [plan for plan, state in plans if state == "finished"]
    finished = [read_cell(plan) for plan in made]
    failed = [plan.task.name for plan, state in plans if state == "failed"]
    if not finished:
        raise DataError(
            f"{folder} holds no finished cell of the grid: look into the files {FAILED} below it, "
            "or make some."
        )
    shown = dict.fromkeys(cell.task.dataset for cell in finished)
    tested = {}
    for name in shown:
        data = maker.data(name)
        tested[name] = Tested(data.examples("test").users, floor_ranks(data))
    report = write_recommender_report(
        grid.report_folder(folder),
        grid,
        finished,
        tested,
        failed=failed,
        missing=len(tasks) - len(finished) - len(failed),
        command=shlex.join(command),
    )
    write_cells(report.parent / CELLS_FILE, made)
    if len(finished) < len(tasks):
        say(f"{len(tasks) - len(finished)} cells of the grid are not there; the rest is reported.")
    return report


def _write_run(folder: Path, grid: RecommenderGrid, command: Sequence[str]) -> None:
    """Writes what the run is, and sweeps up what a killed one left half-written."""
    for half in (folder / CELLS).glob("*/*/.*"):
        shutil.rmtree(half, ignore_errors=True)
    own = grid.report_folder(folder)
    artefacts.write_file(own / "grid.json", json.dumps(asdict(grid), indent=1) + "\n")
    artefacts.write_file(own / "command.txt", shlex.join(command) + "\n")
    described = json.dumps(versions(code_hash()), indent=1)
    artefacts.write_file(own / "versions.json", described + "\n")
