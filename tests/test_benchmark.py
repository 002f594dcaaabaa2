from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from ilrec_sb3 import cli
from ilrec_sb3.benchmark import (
    BenchmarkResult,
    DemonstrationSpec,
    Grid,
    GridEnvironment,
    load_grid,
    run_benchmark,
    stages,
)
from ilrec_sb3.benchmark.report import Background
from ilrec_sb3.cells import CellResult, Task, run_task
from recsim_env import DataError, Prepared
from recsim_env.trajectories import load_trajectories, save_trajectories

GRIDS = Path(__file__).parents[1] / "benchmarks" / "grids"
SMALL = {"n_users": 60, "n_items": 40, "seed": 3}
ENVIRONMENTS = {"toy": {"options": SMALL}}
QUICK = {"warm_start_steps": 2, "discriminator_steps": 1, "batch_size": 16}


def grid(*rows: Mapping[str, Any] | str, **settings: Any) -> Grid:
    values: dict[str, Any] = {
        "name": "toy",
        "environments": ENVIRONMENTS,
        "steps": 80,
        "seeds": [0],
        "episodes": 10,
        "curve_points": 0,
        "rows": [{"algorithm": row} if isinstance(row, str) else row for row in rows],
    }
    return Grid.from_dict(values | settings)


# -- the file --------------------------------------------------------------------------------------


def test_the_grids_of_the_repository_are_understood() -> None:
    found = {
        file.stem: load_grid(file) for file in GRIDS.glob("*.toml") if "baselines" not in str(file)
    }
    assert len({g.name for g in found.values()}) == len(found)
    assert {"smoke", "steam", "steam_300k", "steam_ablations", "amazon", "movielens"} <= set(found)
    steam = found["steam"]
    assert len(steam.seeds) == 5
    assert steam.rows[0].name == "random"
    tasks = [task for _, task in steam.tasks()]
    assert {t.steps for t in tasks if t.algorithm == "ILRec"} == {100_000}
    assert {t.steps for t in tasks if t.algorithm.startswith("offline:")} == {steam.offline_steps}
    assert {t.steps for t in tasks if t.seed is None} == {0}
    # what needs no training first, then seed by seed
    assert [t.seed for t in tasks] == sorted(
        (t.seed for t in tasks), key=lambda s: -1 if s is None else s
    )
    coat = found["coat_easyrl4rec"]
    assert {task.episodes for _, task in coat.tasks()} == {1_000}
    labels = {row.name for row in found["steam_sensitivity"].rows}
    assert {"ILRec beta=1", "ILRec alpha=0.25", "ILRec ent_coef=auto_0.5"} <= labels


def test_rows_of_included_files_come_first(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[[rows]]\nalgorithm = "random"\n')
    (tmp_path / "b.toml").write_text('[[rows]]\nalgorithm = "greedy"\n')
    head = 'name = "g"\ninclude = ["a.toml", "b.toml"]\n[environments.toy]\n'
    (tmp_path / "g.toml").write_text(head + '[[rows]]\nalgorithm = "oracle"\n')
    assert [row.name for row in load_grid(tmp_path / "g.toml").rows] == [
        "random",
        "greedy",
        "oracle",
    ]
    (tmp_path / "g.toml").write_text(head.replace("a.toml", "no.toml"))
    with pytest.raises(DataError, match=r"no\.toml is not there"):
        load_grid(tmp_path / "g.toml")
    for content in ("steps = 3\n[[rows]]\nalgorithm = 'random'", "rows = 3", "[[row]]", ""):
        (tmp_path / "no.toml").write_text(content)
        with pytest.raises(DataError, match=r"no\.toml came as rows to include"):
            load_grid(tmp_path / "g.toml")


def test_settings_of_every_kind_of_algorithm_are_known() -> None:
    rows = (
        {"algorithm": "sb3:A2C+items@dorl", "settings": {"reward_model": {}, "n_steps": 7}},
        {"algorithm": "contrib:QRDQN+items", "settings": {"policy_kwargs": {}, "n_sessions": 2}},
        {"algorithm": "ILRec", "settings": {"beta": 1.0, "ent_coef": 0.1, "n_sessions": 4}},
        {"algorithm": "offline:BCQ", "settings": {"threshold": 0.2, "batch_size": 8}},
    )
    assert len(grid(*rows).rows) == 4


def test_a_sweep_is_one_row_for_each_combination() -> None:
    swept = grid({"algorithm": "ILRec", "sweep": {"beta": [1.0, 10.0], "alpha": [0.5]}})
    assert [row.name for row in swept.rows] == ["ILRec beta=1 alpha=0.5", "ILRec beta=10 alpha=0.5"]
    assert swept.rows[1].settings == {"beta": 10.0, "alpha": 0.5}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"algorithm": "ILRek"}, "did you mean 'ILRec'"),
        ({"algoritm": "ILRec"}, "without an algorithm"),
        ({"algorithm": "ILRec", "stpes": 3}, "did you mean 'steps'"),
        ({"algorithm": "ILRec", "steps": 0}, "steps=0 came"),
        ({"algorithm": "ILRec", "steps": "many"}, "steps='many' came"),
        ({"algorithm": "ILRec", "steps": True}, "steps=True came"),
        ({"algorithm": "ILRec", "seeds": [0, 0]}, "none twice"),
        ({"algorithm": "ILRec", "seeds": [-1]}, "0 or more"),
        ({"algorithm": "ILRec", "group": "mian"}, "did you mean 'main'"),
        ({"algorithm": "ILRec", "environments": ["tay"]}, "did you mean 'toy'"),
        ({"algorithm": "ILRec", "sweep": {"beta": 3}}, "expected a list"),
        ({"algorithm": "ILRec", "settings": [1]}, "settings=.* expected a table"),
        ({"algorithm": "ILRec", "demonstrations": "none"}, "demonstrations='none' came"),
        ({"algorithm": "ILRec", "demonstrations": {"sauce": "x"}}, "did you mean 'source'"),
        ({"algorithm": "ILRec", "demonstrations": {"planner": "gredy"}}, "did you mean 'greedy'"),
        ({"algorithm": "ILRec", "demonstrations": {"steps": 5}}, "belong to an algorithm"),
        (
            {"algorithm": "ILRec", "demonstrations": {"source": "x", "file": "y"}},
            "source and file; give one",
        ),
        ({"algorithm": "A2C", "demonstrations": "all"}, "takes none"),
        ({"algorithm": "A2C", "settings": {"gama": 0.9}}, "did you mean 'gamma'"),
        ({"algorithm": "ILRec", "sweep": {"ent_coeff": [1.0]}}, "did you mean 'ent_coef'"),
        ({"algorithm": "offline:CQL", "settings": {"tua": 0.1}}, "did you mean 'tau'"),
        ({"algorithm": "A2C", "settings": {"reward_model": {}}}, "A2C does not have"),
        ({"algorithm": "A2C", "settings": {"gamma": "low"}}, "gamma='low' came; expected a number"),
        ({"algorithm": "A2C", "sweep": {"gamma": [0.9, "low"]}}, "gamma='low' came; expected a"),
        ({"algorithm": "ILRec", "settings": {"batch_size": 2.5}}, "'ILRec': ILRec: batch_size=2.5"),
        (
            {"algorithm": "ILRec", "label": "mine", "settings": {"policy_kwargs": {"x": 1}}},
            "The row 'mine': The setting 'x' came, which ILRec, policy_kwargs does not have",
        ),
        ({"algorithm": "A2C", "environments": [3]}, "environments=.3. came; expected a list"),
        ({"algorithm": "A2C", "label": 3}, "label=3 came; expected text"),
        ({"algorithm": "A2C", "settings": {"seed": 3}}, 'which belongs to "seeds"'),
        ({"algorithm": "ILRec", "settings": {"demonstrations": 3}}, "belong to the row itself"),
        ({"algorithm": "A2C", "settings": {"gamma": float("nan")}}, "expected finite numbers"),
        ({"algorithm": "A2C", "settings": {"gamma": date(2024, 1, 1)}}, "expected finite"),
        ({"algorithm": "A2C", "seeds": [2**32]}, r"below 2\^32"),
        ({"algorithm": "random", "label": "x" * 200}, "too long for the name of a folder"),
        ({"algorithm": "random", "settings": {"x": 1}}, "is not trained"),
        ({"algorithm": "A2C", "label": "a2c"}, "share a folder"),
        ({"algorithm": "A2C"}, "'A2C' came twice"),
    ],
)
def test_bad_rows_get_one_sentence(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        grid("A2C", "greedy", row)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stpes": 3}, "did you mean 'steps'"),
        ({"seeds": []}, "expected a list of whole numbers"),
        ({"name": "a b"}, "a folder is named after it"),
        ({"environments": {}}, "0 environments"),
        ({"environments": {"toy": 3}}, "expected \\[environments.NAME\\]"),
        ({"environments": {"toy": {"datset": "x"}}}, "did you mean 'dataset'"),
        ({"environments": {"toy": {"limit": 0}}}, "limit=0"),
        ({"environments": {"toy": {"setting": "easyrl"}}}, "did you mean 'easyrl4rec'"),
        ({"environments": {"toy": {"setting": "easyrl4rec", "limit": 9}}}, "leave them out"),
        ({"models": 1}, "expected true or false"),
        ({"rows": []}, "0 rows"),
        ({"rows": 3}, r"expected \[environments.NAME\] and \[\[rows\]\]"),
        ({"rows": "random"}, r"expected \[environments.NAME\] and \[\[rows\]\]"),
        ({"device": "gpu"}, "expected cpu, cuda"),
        *(
            ({"environments": {name: {}}}, "An environment named .* came; expected letters")
            for name in ("..", "", "a/b", "two words", "x" * 200)
        ),
        ({"environments": {"toy": {}, "Toy": {}}}, "'toy' and 'Toy' would share a folder"),
        ({"environments": {"toy": {"options": {"seed": date(2024, 1, 1)}}}}, "expected finite"),
        ({"environments": {"toy": {"termination": "none", "window": 5}}}, "window came with"),
    ],
)
def test_bad_grids_get_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        grid("random", **settings)


def test_files_that_are_no_grids(tmp_path: Path) -> None:
    file = tmp_path / "g.toml"
    with pytest.raises(DataError, match="is not there; name a grid file"):
        load_grid(file)
    with pytest.raises(DataError, match="is a folder; name a grid file in it"):
        load_grid(tmp_path)
    file.write_text("name = ")
    with pytest.raises(DataError, match="is not TOML"):
        load_grid(file)
    file.write_text('name = "x"\nstpes = 1')
    with pytest.raises(DataError, match=r"g\.toml: .*did you mean 'steps'"):
        load_grid(file)


# -- runs ------------------------------------------------------------------------------------------


class Report:
    """Stands in for the report, which has tests of its own."""

    def __init__(self) -> None:
        self.cells: list[CellResult] = []
        self.backgrounds: dict[str, Background] = {}

    def __call__(
        self, folder: Path, cells: Sequence[CellResult], backgrounds: Any, **options: str
    ) -> Path:
        assert set(options) == {"title", "command"}
        self.cells, self.backgrounds = list(cells), dict(backgrounds)
        (folder / "report.md").write_text("report")
        return folder / "report.md"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, prepared: Prepared) -> Report:
    assert prepared.path.exists()
    stub = Report()
    monkeypatch.setattr("ilrec_sb3.benchmark.report.write_report", stub)
    return stub


class Run:
    """Runs grids in a folder and notes which cells were made."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.made: list[str] = []
        self.said: list[str] = []
        self.stop_at: str | None = None

        def watched(task: Task, *rest: Any, **options: Any) -> Any:
            self.made.append(task.name)
            if task.name == self.stop_at:
                raise KeyboardInterrupt
            return run_task(task, *rest, **options)

        monkeypatch.setattr("ilrec_sb3.benchmark.run.run_task", watched)

    def __call__(self, wanted: Grid, **options: Any) -> BenchmarkResult:
        self.made.clear()
        self.said.clear()
        return run_benchmark(wanted, self.folder, progress=False, say=self.said.append, **options)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report) -> Run:
    assert not report.cells
    return Run(tmp_path / "run", monkeypatch)


def test_a_run_is_made_once_and_then_found(run: Run, report: Report) -> None:
    wanted = grid("random", {"algorithm": "A2C", "label": "mine", "group": "ablation"})
    result = run(wanted, command=["ilrec", "benchmark", "g.toml"])
    assert run.made == ["random", "mine-seed0"]
    assert (result.missing, result.failed) == (0, 0)
    assert [(c.label, c.group, c.seed) for c in report.cells] == [
        ("random", "main", None),
        ("mine", "ablation", 0),
    ]
    assert len({cell.code for cell in report.cells}) == 1
    users = [cell.episodes[""].users.tolist() for cell in report.cells]
    assert users[0] == users[1]
    cell = run.folder / "cells" / "toy" / "mine-seed0"
    assert {p.name for p in cell.iterdir()} == {
        "cell.json",
        "episodes.parquet",
        "manifest.json",
        "model.zip",
    }
    assert (run.folder / "command.txt").read_text() == "ilrec benchmark g.toml\n"
    assert run.said[1].startswith("[1/2] toy: random: return ")
    assert "left" in run.said[1] or run.said[1].endswith(" s")
    run(wanted)
    assert run.made == []
    # groups and labels are today's; other settings make another cell
    again = run(replace(wanted, rows=(wanted.rows[0], replace(wanted.rows[1], group="main"))))
    assert run.made == []
    assert [cell.group for cell in again.cells] == ["main", "main"]
    assert json.loads((cell / "cell.json").read_text())["group"] == "ablation"


def test_other_settings_are_made_anew_and_left_out_of_the_report(run: Run) -> None:
    run(grid("random", "A2C"))
    longer = grid("random", "A2C", steps=96)
    found = run(longer, report_only=True)
    assert [cell.label for cell in found.cells] == ["random"]
    assert found.missing == 1
    assert "1 cells of the grid are not there" in run.said[-1]
    run(longer)
    assert run.made == ["A2C-seed0"]
    assert "1 were made with other settings" in run.said[0]
    run(longer, fresh=True, only=["A2*"])
    assert run.made == ["A2C-seed0"]
    run(longer, fresh=True)
    assert run.made == ["random", "A2C-seed0"]


def actions(cell: CellResult) -> Sequence[Sequence[int]]:
    (played,) = cell.episodes.values()
    return played.actions


def test_what_another_run_made_is_taken_from_it(
    run: Run, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"ent_coef": 0.1, "learning_starts": 16, "batch_size": 16}
    first = grid({"label": "mine", "algorithm": "DiscreteSAC", "settings": settings})
    run(first)
    donor = run.folder
    before = report.cells[0]

    run.folder = donor.with_name("other")
    # the default of `gamma` is written out: the cell is the same, a sweep of it makes one more
    sweep = {"gamma": [0.95, 0.5]}
    second = grid({"algorithm": "DiscreteSAC", "settings": settings, "sweep": sweep})
    run(second, reuse=[donor])
    assert run.made == ["DiscreteSAC-gamma=0.5-seed0"]
    assert run.said[0] == "1 cells to make, 1 were made before under another name."
    taken, other = report.cells
    assert (taken.label, taken.settings["gamma"]) == ("DiscreteSAC gamma=0.95", 0.95)
    assert actions(taken) == actions(before) != actions(other)
    assert (run.folder / "cells/toy/DiscreteSAC-gamma=0.95-seed0/model.zip").exists()
    run(second)
    assert run.made == []

    # a default may have been another one in other code: then it is the same by name alone
    monkeypatch.setattr("ilrec_sb3.benchmark.run.code_hash", lambda: "other code")
    run.folder = donor.with_name("third")
    run(second, reuse=[donor])
    assert "DiscreteSAC-gamma=0.95-seed0" in run.made
    run.folder = donor.with_name("fourth")
    run(first, reuse=[donor])
    assert run.made == []

    with pytest.raises(DataError, match="fresh and reuse came"):
        run(second, reuse=[donor], fresh=True)
    with pytest.raises(DataError, match="nowhere is not there, so no cell can be taken"):
        run(second, reuse=["nowhere"])


def test_cells_that_differ_in_their_names_are_made_once(run: Run, report: Report) -> None:
    rows = [{"label": label, "algorithm": "sb3:A2C"} for label in ("one", "two")]
    run(grid(*rows))
    assert run.made == ["one-seed0"]
    assert run.said[0] == "1 cells to make, 1 will be the same as another one."
    one, two = report.cells
    assert (one.label, two.label) == ("one", "two")
    assert actions(one) == actions(two)
    run(grid(*rows, {"label": "three", "algorithm": "sb3:A2C"}))
    assert run.made == []
    assert [cell.label for cell in report.cells] == ["one", "two", "three"]
    # made anew means made anew, whatever else is there
    run(grid(*rows), only=["two"], fresh=True)
    assert run.made == ["two-seed0"]


def test_twins_of_a_cell_that_fails_fail_too(run: Run, report: Report) -> None:
    bad = {"algorithm": "sb3:A2C", "settings": {"gamma": 7.0, "n_steps": 0}}
    made = run(grid({**bad, "label": "one"}, {**bad, "label": "two"}))
    assert made.failed == 2
    assert [cell.failed is None for cell in report.cells] == [False, False]


def test_only_and_environments_and_dry_run(run: Run) -> None:
    wanted = grid(
        "random",
        "greedy",
        environments={"toy": {"options": SMALL}, "short": {"options": SMALL, "limit": 5}},
    )
    run(wanted, dry_run=True)
    assert run.made == []
    assert not run.folder.exists()
    assert run.said[-1] == "4 cells: 4 missing."
    run(wanted, only=["greedy"], environments=["short"])
    assert run.made == ["greedy"]
    run(wanted, dry_run=True)
    assert sorted(run.said)[:2] == ["4 cells: 3 missing, 1 finished.", "short/greedy: finished"]
    with pytest.raises(DataError, match="did you mean 'greedy'"):
        run(wanted, only=["gredy"])
    with pytest.raises(DataError, match="did you mean 'short'"):
        run(wanted, environments=["shirt"])
    with pytest.raises(DataError, match="no environment 'x\\*'"):
        run(wanted, environments=["x*", "short"])
    run(wanted, dry_run=True, only=["greedy"], environments=["sh*"])
    assert run.said == ["short/greedy: finished", "1 cells: 1 finished."]
    run(wanted, dry_run=True, environments=["*"])
    assert run.said[-1] == "4 cells: 3 missing, 1 finished."
    with pytest.raises(DataError, match="holds no cell"):
        run(grid("oracle"), report_only=True)
    elsewhere = grid("random", {"algorithm": "greedy", "environments": ["toy"]})
    both = replace(elsewhere, environments=wanted.environments)
    with pytest.raises(DataError, match="None of the rows asked for plays in 'short'"):
        run(both, only=["greedy"], environments=["short"])


def test_a_report_of_nothing_leaves_nothing(run: Run) -> None:
    with pytest.raises(DataError, match="is not there, so there is no cell to report"):
        run(grid("random"), report_only=True)
    assert not run.folder.exists()


def test_fresh_removes_nothing_for_what_cannot_be_made(run: Run) -> None:
    run(grid("random", "greedy"))
    missing = {"algorithm": "ILRec", "demonstrations": {"file": "missing.parquet"}}
    with pytest.raises(DataError, match=r"missing\.parquet is not there"):
        run(grid("random", "greedy", missing), fresh=True)
    run(grid("random", "greedy"))
    assert run.made == []


def test_an_algorithm_that_writes_into_its_settings_leaves_the_cell_alone(run: Run) -> None:
    # A2C adds the class of its optimizer to policy_kwargs
    wanted = grid({"algorithm": "A2C", "settings": {"policy_kwargs": {"net_arch": [8]}}})
    assert run(wanted).failed == 0
    assert run(wanted).cells[0].settings == {"policy_kwargs": {"net_arch": [8]}}
    assert run.made == []


def test_a_full_disk_ends_the_run_in_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ilrec_sb3.benchmark.run.write_cell", full)
        patch.setattr("ilrec_sb3.benchmark.run.write_failure", full)
        with pytest.raises(DataError, match=r"cannot be written \(no space left on device\)"):
            run(grid("random", "greedy"))
        assert run.made == ["random"]
    run(grid("random", "greedy"))
    assert run.made == ["random", "greedy"]


def test_a_cell_that_fails_says_so_and_is_tried_again(run: Run) -> None:
    wanted = grid({"algorithm": "A2C", "settings": {"n_sessions": 0}}, "random", "greedy")
    mended_grid = grid("A2C", "random", "greedy")
    result = run(wanted)
    assert result.failed == 1
    (failed,) = [cell for cell in result.cells if cell.failed]
    assert "num_envs=0 came" in str(failed.failed)
    folder = run.folder / "cells" / "toy" / "A2C-seed0"
    assert json.loads((folder / "failed.json").read_text())["failed"] == failed.failed
    assert "Traceback" in (folder / "traceback.txt").read_text()
    assert any("FAILED: num_envs=0 came" in line for line in run.said)
    # what failed is of its settings, as what is finished is
    assert run(mended_grid, report_only=True).missing == 1
    assert run(wanted).failed == 1
    assert run.made == ["A2C-seed0"]
    assert "1 failed before and are tried again" in run.said[0]
    mended = run(mended_grid)
    assert mended.failed == 0
    assert not (folder / "failed.json").exists()
    assert all(cell.failed is None for cell in mended.cells)


def test_ctrl_c_keeps_what_is_finished(run: Run) -> None:
    wanted = grid("random", "greedy", "oracle")
    run.stop_at = "greedy"
    with pytest.raises(KeyboardInterrupt):
        run(wanted)
    half = run.folder / "cells" / "toy" / ".greedy.123-ab"
    half.mkdir()
    run.stop_at = None
    run(wanted)
    assert run.made == ["greedy", "oracle"]
    assert not half.exists()


def test_a_broken_cell_is_made_again(run: Run) -> None:
    run(grid("random", "greedy"))
    (run.folder / "cells" / "toy" / "greedy" / "episodes.parquet").write_bytes(b"half")
    run(grid("random", "greedy"))
    assert run.made == ["greedy"]


def test_another_environment_under_the_same_name_is_refused(run: Run) -> None:
    run(grid("random", "greedy"))
    other = {"toy": {"options": SMALL, "max_repeats": 3}}
    with pytest.raises(DataError, match="made in another environment of the name 'toy'"):
        run(grid("random", "greedy", environments=other))
    # so is a new row beside old ones, and before anything is removed or made
    with pytest.raises(DataError, match="random was made in another environment"):
        run(grid("random", "greedy", environments=other), only=["greedy"], fresh=True)
    with pytest.raises(DataError, match="greedy was made in another environment"):
        run(grid("oracle", "greedy", environments=other), only=["oracle"])
    assert run.made == []
    assert run(grid("random", "greedy")).missing == 0
    assert run.made == []
    run(grid("random", "greedy", environments=other), fresh=True)
    assert run.made == ["random", "greedy"]


def test_two_processes_do_not_share_a_run(run: Run) -> None:
    run.folder.mkdir()
    with FileLock(run.folder / ".lock"), pytest.raises(DataError, match="Another process works on"):
        run(grid("random"))


def test_models_may_be_left_out(run: Run) -> None:
    run(grid("A2C", models=False))
    assert not (run.folder / "cells" / "toy" / "A2C-seed0" / "model.zip").exists()


def test_the_background_of_an_environment(run: Run, report: Report, prepared: Prepared) -> None:
    run(grid("random", environments={"toy": {"options": SMALL, "title": "Toy"}}))
    background = report.backgrounds["toy"]
    assert background.title == "Toy"
    assert background.n_items == 40
    assert background.categories.shape == (40, len(background.category_names))
    assert background.popularity.sum() == prepared.train_rows.sum()


def test_processes_make_what_one_process_makes(run: Run) -> None:
    wanted = grid(
        "random", "A2C", {"algorithm": "A2C", "label": "bad", "settings": {"n_sessions": 0}}
    )
    one = run(wanted)
    assert run.made == ["random", "A2C-seed0", "bad-seed0"]
    shutil.rmtree(run.folder)
    two = run(wanted, jobs=2)
    assert run.made == []  # not in this process
    assert (one.failed, two.failed) == (1, 1)
    for here, there in zip(one.cells, two.cells, strict=True):
        assert here.failed == there.failed
        for mode, played in here.episodes.items():
            np.testing.assert_array_equal(played.returns, there.episodes[mode].returns)


# -- demonstrations --------------------------------------------------------------------------------


def test_demonstrations_are_written_once_and_part_of_what_a_cell_is(
    run: Run, tmp_path: Path
) -> None:
    def wanted(demonstrations: Any) -> Grid:
        return grid(
            {"algorithm": "demonstrations", "demonstrations": demonstrations},
            {"algorithm": "ILRec", "demonstrations": demonstrations, "settings": QUICK},
        )

    explorer = {"planner": "explorer", "sessions": 6}
    result = run(wanted(explorer))
    (file,) = (run.folder / "demonstrations").iterdir()
    assert file.name.startswith("toy-explorer-")
    assert len(load_trajectories(file)) == 6
    assert len(result.cells[0].episodes[""].users) == 6
    run(wanted(explorer))
    assert run.made == []
    # the same sessions from a file are the same cells, others are not
    copied = tmp_path / "copied.parquet"
    shutil.copy(file, copied)
    run(wanted({"file": str(copied)}))
    assert run.made == []
    save_trajectories(copied, load_trajectories(file)[:3])
    run(wanted({"file": str(copied)}))
    assert run.made == ["demonstrations", "ILRec-seed0"]


def stage_of_toy() -> tuple[stages.Stages, Any]:
    made = stages.Stages()
    return made, made.get(GridEnvironment(options=SMALL))


def test_where_demonstrations_come_from(prepared: Prepared, tmp_path: Path) -> None:
    assert prepared.path.exists()
    made, stage = stage_of_toy()
    assert made.get(GridEnvironment(options=SMALL)) is stage
    assert made.__getstate__()["_made"] == {}

    def names(**spec: Any) -> list[str]:
        found = stages.make_demonstrations(DemonstrationSpec(**spec), stage.train)
        return [trajectory.source for trajectory in found]

    assert names(sessions=3) == ["scripted explorer"] * 3
    assert len(names(planner="explorer")) == 200
    assert names(planner="greedy", sessions=4) == ["greedy"] * 4
    assert names(algorithm="A2C", steps=80, sessions=2) == ["A2C"] * 2
    found = stages.make_demonstrations(DemonstrationSpec(planner="greedy", sessions=5), stage.train)
    save_trajectories(tmp_path / "five.parquet", found)
    few = DemonstrationSpec(file=str(tmp_path / "five.parquet"), sessions=2)
    drawn = [stages.make_demonstrations(few, stage.train) for _ in range(2)]
    assert [t.user for t in drawn[0]] == [t.user for t in drawn[1]]
    assert len(drawn[0]) == 2
    both = DemonstrationSpec.parse([{"file": few.file}, {"planner": "random", "sessions": 3}])
    put_together = stages.make_demonstrations(both, stage.train)
    assert [t.source for t in put_together] == ["greedy"] * 5 + ["random"] * 3
    path = stages.demonstrations_path(tmp_path, "toy", both, stage)
    assert path.name.startswith("toy-several-")
    save_trajectories(tmp_path / "five.parquet", found[:4])
    assert stages.demonstrations_path(tmp_path, "toy", both, stage) != path
    with pytest.raises(DataError, match="no demonstrations of 'gpt-4'"):
        names(source="gpt-4")
    absent = DemonstrationSpec(file=str(tmp_path / "no.parquet"))
    with pytest.raises(DataError, match="is not there"):
        stages.demonstrations_path(tmp_path, "toy", absent, stage)


def test_recorded_sessions_of_another_model_are_asked_of_the_reader(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepared.path.exists()
    _, stage = stage_of_toy()
    from recsim_env.prepare import Session

    def read(dataset: Any, root: Any, embedder: Any, models: Sequence[str] = ()) -> Any:
        assert (dataset.n_items, root) == (40, None)
        assert embedder is stage.train.prepared.text_embedder
        return [Session(user=1, history=(3,), actions=(1, 2), source=models[0])], {}

    class Entry:
        def load(self) -> Any:
            return read

    monkeypatch.setattr(stages.importlib.metadata, "entry_points", lambda **_: [Entry()])
    (found,) = stages.make_demonstrations(DemonstrationSpec(source="gpt-4-32k"), stage.train)
    assert found.source == "gpt-4-32k"
    # a known user starts from the train interactions, whatever the reader says
    assert found.history == ()


def test_options_of_a_setting_are_checked() -> None:
    with pytest.raises(DataError, match="did you mean 'short_window'"):
        stages.Stages().get(GridEnvironment(setting="easyrl4rec", options={"short_windw": True}))


@pytest.mark.realdata
def test_the_peer_test_on_coat(real_data: Path, cache: Path) -> None:
    made = stages.Stages(str(real_data), str(cache))
    coat = GridEnvironment(setting="easyrl4rec")
    stage = made.get(coat)
    assert list(stage.tests) == ["FB", "NX_0", "NX_10"]
    cell, _ = run_task(Task("coat", "oracle", "oracle", episodes=100), stage)
    means = {mode: played.returns.mean() for mode, played in cell.episodes.items()}
    assert means["FB"] > means["NX_0"] > means["NX_10"]
    short = made.get(replace(coat, options={"short_window": True}))
    assert short.test.fingerprint != stage.test.fingerprint


# -- the command line ------------------------------------------------------------------------------


def test_the_command_makes_a_report(
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert prepared.path.exists()
    monkeypatch.chdir(tmp_path)
    command = ["benchmark", str(GRIDS / "smoke.toml"), "--no-progress"]
    some = ["--only", "random", "greedy", "oracle", "rule-aware planner", "sb3:A2C"]
    assert cli.main([*command, *some]) == 0
    assert "Report: runs/benchmark-smoke/report.md" in capsys.readouterr().out
    folder = tmp_path / "runs" / "benchmark-smoke"
    assert {"report.md", "report.html", "tables.csv"} <= {p.name for p in folder.iterdir()}
    text = (folder / "report.md").read_text()
    assert "all of the same code" in text
    assert (folder / "cells" / "synthetic" / "sb3-A2C-seed1" / "cell.json").exists()
    assert cli.main([*command, "--report-only"]) == 0
    assert cli.main(["benchmark", "nowhere.toml"]) == 1
    assert "nowhere.toml is not there" in capsys.readouterr().err


def test_a_failed_cell_gives_exit_code_1(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not report.cells
    (tmp_path / "g.toml").write_text(
        'name = "g"\nseeds = [0]\nsteps = 10\nepisodes = 5\n[environments.toy]\n'
        "options = { n_users = 60, n_items = 40, seed = 3 }\n"
        '[[rows]]\nalgorithm = "random"\n'
        '[[rows]]\nalgorithm = "A2C"\nsettings = { n_sessions = 0 }\n'
    )
    out = ["--out", str(tmp_path / "out"), "--no-progress"]
    assert cli.main(["benchmark", str(tmp_path / "g.toml"), *out]) == 1
    assert "1 cells failed; the same command tries them again." in capsys.readouterr().out
