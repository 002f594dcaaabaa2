"""Cells of modes in which the environment takes shown items away, and the grids of benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ilrec_sb3.benchmark import Grid, load_grid
from ilrec_sb3.cells import DEMONSTRATIONS, PLANNERS, CellResult, Stage, Task, run_task
from recsim_env import DataError, Dynamics, Prepared
from recsim_env.easyrl4rec import easyrl4rec_dynamics
from recsim_env.planners import draw_users, rule_aware, run_episodes
from recsim_env.prepare import Session
from recsim_env.trajectories import Trajectory

GRIDS = Path(__file__).parents[1] / "benchmarks" / "grids"
TRAINED = (
    "sb3:DQN",
    "DoubleDQN",
    "contrib:QRDQN",
    "sb3:A2C",
    "sb3:PPO",
    "contrib:TRPO",
    "contrib:MaskablePPO",
    "sb3:A2C+items",
    "DoubleDQN+items",
    "offline:BC",
    "DiscreteSAC",
)


@pytest.fixture(scope="module")
def stage(prepared: Prepared) -> Stage:
    """The modes of Coat on made-up ratings that never make a user leave early."""
    users, items = prepared.dataset.n_users, prepared.dataset.n_items
    ratings = np.random.default_rng(0).uniform(1, 5, (users, items)).astype(np.float32)
    return Stage(
        easyrl4rec_dynamics(prepared, ratings),
        {
            mode: easyrl4rec_dynamics(prepared, ratings, split="test", mode=mode)
            for mode in ("FB", "NX_0", "NX_10")
        },
    )


def _repeating(train: Dynamics) -> list[Trajectory]:
    """Sessions that show an item again, once the users have forgotten it."""
    shown = (*range(9), 0, 9)
    return train.replay([Session(user=k, history=(), actions=shown, source="x") for k in range(3)])


def _made(name: str, stage: Stage) -> CellResult:
    seed = None if name in (*PLANNERS, DEMONSTRATIONS) else 0
    task = Task("toy", name, name, seed=seed, steps=4, episodes=12, curve_points=0)
    return run_task(task, stage, _repeating(stage.train))[0]


@pytest.mark.parametrize("name", [*PLANNERS, DEMONSTRATIONS, *TRAINED])
def test_no_session_of_any_row_holds_a_repeat_where_the_environment_takes_it_away(
    stage: Stage, name: str
) -> None:
    cell = _made(name, stage)
    assert list(cell.episodes) == ["FB", "NX_0", "NX_10"]
    for mode in ("NX_0", "NX_10"):
        sessions = cell.episodes[mode].actions
        assert all(len(set(items)) == len(items) for items in sessions), mode
    if name != DEMONSTRATIONS:
        assert set(cell.episodes["NX_10"].lengths.tolist()) == {10}


def test_an_algorithm_that_cannot_be_masked_is_left_out_of_these_modes(stage: Stage) -> None:
    assert list(_made("contrib:ARS", stage).episodes) == ["FB"]
    alone = Stage(stage.train, {"NX_0": stage.tests["NX_0"], "FB": stage.tests["FB"]})
    with pytest.raises(DataError, match="takes shown items away"):
        _made("contrib:ARS", alone)


def test_planners_have_a_point_of_the_users_of_the_curves_where_asked(stage: Stage) -> None:
    task = Task("toy", "x", "rule-aware greedy", episodes=5, curve_episodes=7)
    cell, _ = run_task(task, stage, planner_points=True)
    ((step, mean),) = cell.curve
    test = stage.test
    played = run_episodes(test, rule_aware(), 7, task.evaluation_seed + 1)
    assert (step, mean) == (0, pytest.approx(played.returns.mean()))
    np.testing.assert_array_equal(played.users, draw_users(test, 7, task.evaluation_seed + 1))
    assert run_task(task, stage)[0].curve == ()
    without = Task("toy", "x", "rule-aware greedy", episodes=5, curve_points=0)
    assert run_task(without, stage, planner_points=True)[0].curve == ()


def _grid(name: str) -> Grid:
    return load_grid(GRIDS / f"{name}.toml")


@pytest.mark.parametrize("name", ["coat_easyrl4rec", "coat_short_window"])
def test_coat_is_judged_by_enough_sessions(name: str) -> None:
    assert {task.episodes for _, task in _grid(name).tasks()} == {1_000}


def test_what_would_be_the_same_row_twice_is_left_out() -> None:
    names = {row.algorithm for row in _grid("steam").rows}
    assert "sb3:A2C+items" in names
    assert "sb3:A2C+items@mbpo" not in names


def test_ablations_say_what_they_go_without() -> None:
    settings = {row.name: dict(row.settings) for row in _grid("steam_ablations").rows}
    assert settings["ILRec without the imitation loss"] == {"imitation_coef": 0.0}
    assert settings["ILRec without imitation and warm start"] == {
        "imitation_coef": 0.0,
        "warm_start_steps": 0,
    }
    assert "ILRec without imitation" not in settings


def test_the_offline_expert_is_trained_as_its_row_of_the_main_table() -> None:
    specs = [row.demonstrations for row in _grid("steam_demonstrations").rows]
    experts = [spec for spec in specs if spec is not None and spec.algorithm is not None]
    ((_, task),) = [t for t in _grid("steam").tasks() if t[1].name == "offline-CQL-seed0"]
    assert dict(task.settings) == {}
    assert [(spec.algorithm, spec.steps) for spec in experts] == [(task.algorithm, task.steps)] * 2
