"""Puts the report of a run of `ilrec benchmark` or `ilrec lea benchmark` into benchmarks/results.

    python benchmarks/publish.py benchmarks/grids/steam.toml --data DIR
    python benchmarks/publish.py benchmarks/lea/table2.toml --data DIR

The report is written anew with the command that makes the rows that are there, and goes along with
its table in CSV and the plots. The cells stay where they are. Of `ilrec lea benchmark` each dataset
has a report of its own, and `cells.parquet` holds what it was made from.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from ilrec_sb3.benchmark import Grid, load_grid, run_benchmark
from ilrec_sb3.cells import read_cells
from ilrec_sb3.lea.benchmark import begun_tasks, run_recommender_benchmark
from ilrec_sb3.lea.grid import load_recommender_grid
from ilrec_sb3.lea.reuse import CELLS_FILE

RESULTS = Path(__file__).parent / "results"


def command_for(file: Path, grid: Grid, made: set[str]) -> list[str]:
    """Returns what makes the rows of these labels."""
    command = f"ilrec benchmark benchmarks/grids/{file.name} --data DIR --jobs 2"
    return [*command.split(), *chosen("--only", [row.name for row in grid.rows], made)]


def chosen(option: str, known: Sequence[str], made: Collection[str]) -> list[str]:
    """Returns the option that picks what was made; nothing where that is all there is."""
    names = list(dict.fromkeys(known))
    return [] if set(made) >= set(names) else [option, *(name for name in names if name in made)]


def publish(file: Path, run: Path | None, data: str | None) -> Path:
    """Puts a report of `ilrec benchmark` into benchmarks/results/NAME, NAME being the grid file's.

    Args:
        file: Of the grid.
        run: Folder of the run; None: as `ilrec` has it.
        data: Folder with the raw data.
    """
    grid = load_grid(file)
    run = run or Path(f"runs/benchmark-{grid.name}")
    command = command_for(file, grid, {cell.label for cell in read_cells(run)})
    run_benchmark(grid, run, data=data, report_only=True, command=command)
    return copy(run, ["tables.csv"], RESULTS / file.stem)


def publish_lea(file: Path, run: Path | None, data: str | None) -> list[Path]:
    """Puts reports of `ilrec lea benchmark` into benchmarks/results/lea/NAME/DATASET.

    Each dataset has a report of its own, so that one can be made anew without the others. The cells
    come along in one file, from which the report can be made again.

    Args:
        file: Of the grid.
        run: As in `publish`.
        data: Likewise.
    """
    grid = load_recommender_grid(file)
    made = begun_tasks(grid, run, data=data)
    published = []
    for name in grid.datasets:
        own = {task.label for task in made if task.dataset == name}
        if not own:
            continue
        part = grid.only(name)
        command = f"ilrec lea benchmark benchmarks/lea/{file.name} --data DIR --jobs 2".split()
        command += chosen("--only", [row.name for row in part.rows], own)
        command += chosen("--datasets", list(grid.datasets), {name})
        report, _ = run_recommender_benchmark(
            part, run, data=data, report_only=True, command=command
        )
        assert report is not None
        target = RESULTS / "lea" / file.stem / name
        published.append(copy(report.parent, ("results.csv", CELLS_FILE), target))
    return published


def copy(source: Path, tables: Sequence[str], target: Path) -> Path:
    """Copies report, tables and plots; plots of before go."""
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.png"):
        old.unlink()
    for file in (source / "report.md", *(source / one for one in tables), *source.glob("*.png")):
        shutil.copyfile(file, target / file.name)
    return target


def main() -> None:
    """Publishes one report; grids in a folder "lea" are those of `ilrec lea benchmark`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path, help="file of the grid")
    parser.add_argument("--run", type=Path, help="folder of the run (default: as `ilrec` has it)")
    parser.add_argument("--data", help="folder with the raw data")
    arguments = parser.parse_args()
    lea = arguments.grid.resolve().parent.name == "lea"
    found = (publish_lea if lea else publish)(arguments.grid, arguments.run, arguments.data)
    print(*(found if isinstance(found, list) else [found]), sep="\n")


if __name__ == "__main__":
    main()
