"""Puts the report of a run of `ilrec benchmark` into benchmarks/results.

    python benchmarks/publish.py benchmarks/grids/steam.toml --data DIR

The report is written anew with the command that makes the rows that are there, and goes along with
tables.csv and the plots; the cells stay where they are.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ilrec_sb3.benchmark import Grid, load_grid, run_benchmark
from ilrec_sb3.cells import read_cells

RESULTS = Path(__file__).parent / "results"


def command_for(file: Path, grid: Grid, made: set[str]) -> list[str]:
    """Returns what makes the rows of these labels."""
    labels = list(dict.fromkeys(row.name for row in grid.rows))
    only = [] if made >= set(labels) else ["--only", *(x for x in labels if x in made)]
    command = f"ilrec benchmark benchmarks/grids/{file.name} --data DIR --jobs 2"
    return [*command.split(), *only]


def main() -> None:
    """Writes benchmarks/results/NAME, NAME being the grid file's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path, help="file of the grid")
    parser.add_argument("--run", type=Path, help="folder of the run (default: as `ilrec` has it)")
    parser.add_argument("--data", help="folder with the raw data")
    arguments = parser.parse_args()
    grid = load_grid(arguments.grid)
    run = arguments.run or Path(f"runs/benchmark-{grid.name}")
    command = command_for(arguments.grid, grid, {cell.label for cell in read_cells(run)})
    run_benchmark(grid, run, data=arguments.data, report_only=True, command=command)
    target = RESULTS / arguments.grid.stem
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.png"):
        old.unlink()
    for file in (run / "report.md", run / "tables.csv", *run.glob("*.png")):
        shutil.copyfile(file, target / file.name)
    print(target)


if __name__ == "__main__":
    main()
