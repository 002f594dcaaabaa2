from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.logger import configure

from ilrec_sb3 import cells
from ilrec_sb3.cells import (
    DEMONSTRATIONS,
    PLANNERS,
    CellResult,
    CurveCallback,
    Stage,
    Task,
    cell_name,
    check_comparable,
    code_hash,
    failed_result,
    make_planner,
    read_cell,
    read_cells,
    run_task,
    write_cell,
    write_failure,
)
from ilrec_sb3.ilrec.ilrec import ILRec
from recsim_env import DataError, Dynamics, Prepared
from recsim_env.planners import draw_users, explore, run_episodes
from recsim_env.termination import make_rules

TASK = Task("toy", "A2C", "A2C", seed=0, steps=80, episodes=10, curve_points=2, curve_episodes=4)


@pytest.fixture
def stage(prepared: Prepared) -> Stage:
    def make(split: Any, limit: int) -> Dynamics:
        return Dynamics(prepared, split=split, rules=make_rules(), limit=limit)

    return Stage(make("train", 20), {"long": make("test", 20), "other": make("test", 20)})


def same(one: CellResult, other: CellResult) -> bool:
    for mode in one.episodes:
        for name in ("users", "lengths", "returns"):
            first = getattr(one.episodes[mode], name)
            np.testing.assert_array_equal(first, getattr(other.episodes[mode], name))
            assert first.dtype == getattr(other.episodes[mode], name).dtype
        assert one.episodes[mode].ended_by == other.episodes[mode].ended_by
        assert one.episodes[mode].actions == other.episodes[mode].actions
    return replace(one, episodes={}) == replace(other, episodes={})


def test_a_trained_cell_comes_back_as_it_was(stage: Stage, tmp_path: Path) -> None:
    task = replace(TASK, settings={"gamma": 0.9}, label="A2C, γ 0.9")
    cell, model = run_task(task, stage, code="abc")
    assert model is not None
    assert list(cell.episodes) == ["long", "other"]
    assert cell.fingerprint == stage.tests["long"].fingerprint
    assert cell.steps >= 80
    assert cell.curve[0][0] == 0
    assert len(cell.curve_seconds) == len(cell.curve)
    assert 0 <= cell.curve_seconds[0] < cell.curve_seconds[-1] <= cell.seconds
    assert cell.code == "abc"
    users = draw_users(stage.test, 10, task.evaluation_seed)
    np.testing.assert_array_equal(cell.episodes["other"].users, users)
    write_cell(tmp_path / task.name, cell, model, identity={"key": task.key})
    names = {path.name for path in (tmp_path / task.name).iterdir()}
    assert names == {"cell.json", "episodes.parquet", "model.zip", "manifest.json"}
    assert same(read_cell(tmp_path / task.name), cell)
    write_cell(tmp_path / task.name, cell)
    assert not (tmp_path / task.name / "model.zip").exists()


def test_planners_and_demonstrations_are_cells_without_a_seed(stage: Stage, tmp_path: Path) -> None:
    demonstrated = stage.train.replay(explore(stage.train, 6))
    for name in ("random", "popularity", "greedy", DEMONSTRATIONS):
        task = Task("toy", name, name, episodes=10)
        cell, model = run_task(task, stage, demonstrated)
        assert model is None
        assert cell.steps == 0
        n = 6 if name == DEMONSTRATIONS else 10
        assert [len(played.users) for played in cell.episodes.values()] == [n, n]
        write_cell(tmp_path / task.name, cell)
    assert [cell.label for cell in read_cells(tmp_path)] == [
        "demonstrations",
        "greedy",
        "popularity",
        "random",
    ]


def test_failed_and_broken_cells(stage: Stage, tmp_path: Path) -> None:
    failed = failed_result(TASK, stage.test.fingerprint, "it went\nwrong", "abc")
    assert failed.failed == "it went wrong"
    write_failure(tmp_path / "a", failed, "Traceback ...", identity={"key": "k"})
    assert read_cell(tmp_path / "a") == failed
    assert (tmp_path / "a" / "traceback.txt").read_text() == "Traceback ..."
    cell, _ = run_task(Task("toy", "random", "random", episodes=3), stage)
    write_cell(tmp_path / "b", cell)
    write_cell(tmp_path / ".half", cell)
    assert len(read_cells(tmp_path)) == 2
    (tmp_path / "b" / "episodes.parquet").write_bytes(b"half")
    assert read_cells(tmp_path) == [failed]
    with pytest.raises(DataError, match="holds no cell"):
        read_cell(tmp_path)


def test_cells_of_different_environments_are_not_compared(stage: Stage) -> None:
    one = failed_result(TASK, "f" * 64, "x")
    other = replace(one, environment="elsewhere", fingerprint="0" * 64)
    failed = replace(one, fingerprint="0" * 64)
    check_comparable([one, other, one, failed])
    one, other = replace(one, failed=None), replace(other, failed=None)
    check_comparable([one, other, one, failed])
    with pytest.raises(DataError, match="different environments of the name 'toy'"):
        check_comparable([one, other, replace(one, label="B", fingerprint="0" * 64)])
    assert stage.train.fingerprint != stage.test.fingerprint


@pytest.mark.parametrize(
    ("label", "seed", "name"),
    [
        ("ILRec", None, "ILRec"),
        ("sb3:A2C+items@dorl", 3, "sb3-A2C+items@dorl-seed3"),
        ("ILRec beta=1", 0, "ILRec-beta=1-seed0"),
        ("rule-aware planner", None, "rule-aware-planner"),
        ("../..", None, "cell"),
        ("demonstrations (GPT-4)", None, "demonstrations-GPT-4"),
    ],
)
def test_folders_have_plain_names(label: str, seed: int | None, name: str) -> None:
    assert cell_name(label, seed) == name


def test_the_key_knows_what_decides_the_result() -> None:
    assert replace(TASK, label="x", group="ablation", environment="y", device="cpu").key == TASK.key
    for change in (
        {"seed": 1},
        {"steps": 81},
        {"settings": {"gamma": 0.9}},
        {"algorithm": "DQN"},
        {"episodes": 11},
        {"evaluation_seed": 2},
        {"curve_points": 3},
    ):
        assert replace(TASK, **change).key != TASK.key  # type: ignore[arg-type]


def test_the_code_hash_knows_every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_hash()
    assert len(before) == 64
    assert code_hash() == before
    root = Path(cells.__file__).parents[1]
    read = Path.read_bytes
    for name in ("recsim_env/env.py", "llm_expert/play.py", "ilrec_sb3/benchmark/rows.py"):

        def changed(path: Path, other: Path = root / name) -> bytes:
            return read(path) + (b"#" if path == other else b"")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", changed)
            assert code_hash() != before, name


class Offline:
    """What the callback asks of a model, without rollouts."""

    num_timesteps = 0

    def __init__(self, dynamics: Dynamics) -> None:
        self.logger = configure(format_strings=[])
        self.observation_space = SimpleNamespace(dtype=np.float32, shape=(dynamics.layout.size,))
        self.action_space = SimpleNamespace(n=dynamics.n_items)

    def get_env(self) -> None:
        return None

    def predict(self, observation: Any, deterministic: bool = False) -> tuple[Any, Any]:
        assert deterministic
        return np.zeros(len(observation), np.int64), None


@pytest.mark.parametrize("rollouts", [True, False])
def test_curves_of_algorithms_with_and_without_rollouts(dynamics: Dynamics, rollouts: bool) -> None:
    model: Any = Offline(dynamics)
    callback = CurveCallback(dynamics, every=10, episodes=3)
    callback.init_callback(model)
    callback.on_training_start({}, {})
    for step in range(25):
        if rollouts and step % 8 == 0:
            callback.on_rollout_start()
        model.num_timesteps += 1
        callback.on_step()
    callback.on_training_end()
    steps = [step for step, _ in callback.curve]
    assert steps == ([0, 16, 24, 25] if rollouts else [0, 10, 20, 25])


def test_a_warm_start_is_in_the_seconds_of_the_curve(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(cells, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def taking(seconds: float, method: Any) -> Any:
        def slow(*args: Any, **options: Any) -> Any:
            clock[0] += seconds
            return method(*args, **options)

        return slow

    monkeypatch.setattr(ILRec, "_warm_start", taking(100.0, ILRec._warm_start))
    monkeypatch.setattr(cells, "run_episodes", taking(7.0, run_episodes))
    settings = {"warm_start_steps": 1, "discriminator_steps": 1, "batch_size": 8}
    task = replace(TASK, algorithm="ILRec", settings=settings)
    cell, _ = run_task(task, stage, stage.train.replay(explore(stage.train, 3)))
    assert cell.curve[0][0] == 0
    # evaluations are left out, the warm start is not
    assert set(cell.curve_seconds) == {cell.seconds} == {100.0}


def test_random_play_leaves_out_what_the_environment_takes_away(prepared: Prepared) -> None:
    free = Dynamics(prepared, split="test", rules=(), limit=30, repeats=True)
    masked = Dynamics(prepared, split="test", rules=(), limit=30)
    ended = Dynamics(prepared, split="test", rules=make_rules(), limit=30)

    def doubles(dynamics: Dynamics) -> int:
        played = run_episodes(dynamics, make_planner("random", ended, dynamics), 20, 0)
        return sum(len(items) - len(set(items)) for items in played.actions)

    assert doubles(masked) == 0
    assert doubles(free) > 0
    assert doubles(ended) > 0


def test_every_planner_is_made(dynamics: Dynamics) -> None:
    for name in PLANNERS:
        planner = make_planner(name, dynamics, dynamics)
        assert len(run_episodes(dynamics, planner, 2, 0).users) == 2
    with pytest.raises(DataError, match="did you mean 'oracle'"):
        make_planner("orakle", dynamics, dynamics)


def test_cells_are_json(stage: Stage, tmp_path: Path) -> None:
    cell, _ = run_task(Task("toy", "random", "random", episodes=3), stage, code="c")
    write_cell(tmp_path / "c", cell, identity={"key": "k"})
    values = json.loads((tmp_path / "c" / "cell.json").read_text())
    assert values["identity"] == {"key": "k"}
    assert values["modes"] == ["long", "other"]
    del values["curve_seconds"]  # as in a cell of before they were kept
    (tmp_path / "c" / "cell.json").write_text(json.dumps(values))
    assert same(read_cell(tmp_path / "c"), cell)
    assert values["fingerprint"] == stage.test.fingerprint
