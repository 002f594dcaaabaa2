from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ilrec_sb3 import experiment
from ilrec_sb3.baselines import ALGORITHMS, load_model, make_model, save_model
from ilrec_sb3.cells import Task
from ilrec_sb3.evaluation import Summary
from ilrec_sb3.experiment import (
    TAG_PRICES,
    ExperimentConfig,
    ExperimentResult,
    best_tag_price,
    estimate_seconds,
    planners,
    run_experiment,
)
from ilrec_sb3.report import Curve, Row, findings, table_markdown
from ilrec_sb3.training import TrainConfig
from recsim_env import DataError, Dynamics, Prepared
from recsim_env.planners import rule_aware, run_episodes

TINY = ExperimentConfig(
    options={"n_users": 60, "n_items": 40, "seed": 3},
    algorithms=("A2C", "ILRec"),
    seeds=(0,),
    settings={"ILRec": {"warm_start_steps": 2, "discriminator_steps": 1, "batch_size": 16}},
    steps=80,
    demonstrations=10,
    episodes=20,
    curve_points=2,
    curve_episodes=4,
)


def run(config: ExperimentConfig, out: Path, **options: Any) -> ExperimentResult:
    return run_experiment(config, out, progress=False, say=[].append, **options)


@pytest.fixture(scope="module")
def finished(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> ExperimentResult:
    assert prepared.dataset.n_items == 40
    return run(TINY, tmp_path_factory.mktemp("runs"), command=["ilrec", "demo", "--a b"])


def test_the_folder_holds_everything(finished: ExperimentResult) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names >= {
        "cells",
        "command.txt",
        "config.json",
        "curves.png",
        "data_hash.txt",
        "demonstrations.parquet",
        "episodes.parquet",
        "summary.json",
        "table.md",
        "versions.json",
    }
    assert (finished.folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (finished.folder / "command.txt").read_text() == "ilrec demo '--a b'\n"
    stored = json.loads((finished.folder / "config.json").read_text())
    assert ExperimentConfig.from_dict(stored) == TINY


def test_the_table_has_every_policy_in_order(finished: ExperimentResult) -> None:
    assert [row.policy for row in finished.rows] == [
        "random",
        "greedy",
        "demonstrations",
        "A2C",
        "ILRec",
        "rule-aware planner",
        "oracle",
    ]
    lines = finished.table.splitlines()
    assert lines[0] == "| policy | len | per-step | return | 95 % interval | steps/s | wall time |"
    assert len([line for line in lines if line.startswith("|")]) == 9
    assert "20 sessions on the test world model" in finished.table
    assert "their own 10 sessions" in finished.table
    assert finished.table in (finished.folder / "table.md").read_text()


def test_everyone_is_judged_by_the_same_users(finished: ExperimentResult) -> None:
    table = pq.read_table(finished.folder / "episodes.parquet").to_pandas()
    users = {
        policy: rows["user"].tolist()
        for policy, rows in table.groupby("policy")
        if policy != "demonstrations"
    }
    assert len(users) == 6
    assert len({tuple(found) for found in users.values()}) == 1
    assert (table["items"].map(len) == table["length"]).all()
    for row in finished.rows:
        own = table[table["policy"] == row.policy]
        assert own["return"].mean() == pytest.approx(row.summary.mean_return, rel=1e-5)


def test_curves_start_before_the_first_step_and_end_with_the_last(
    finished: ExperimentResult,
) -> None:
    for curve in finished.curves:
        steps = [step for step, _ in curve.points]
        assert steps[0] == 0
        assert steps[-1] >= TINY.steps
        assert steps == sorted(set(steps))


def test_ctrl_c_loses_one_cell_and_the_same_command_goes_on(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepared.path.exists()
    real = experiment.run_task
    started: list[str] = []

    def interrupted(task: Task, *rest: Any, **options: Any) -> Any:
        if task.seed is not None:
            started.append(task.algorithm)
        if task.algorithm == "ILRec" and started.count("ILRec") == 1:
            raise KeyboardInterrupt
        return real(task, *rest, **options)

    monkeypatch.setattr(experiment, "run_task", interrupted)
    config = replace(TINY, curve_points=0)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path)
    (folder,) = tmp_path.iterdir()
    assert not (folder / "table.md").exists()
    assert (folder / "cells" / "A2C-seed0" / "model.zip").exists()
    result = run(config, tmp_path)
    assert result.folder == folder
    assert started == ["A2C", "ILRec", "ILRec"]
    # what is finished is not gone on with, nor is a run of other settings
    other = run(replace(config, episodes=5), tmp_path)
    assert other.folder != folder


def test_a_broken_cell_is_made_again(
    tmp_path: Path, finished: ExperimentResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, algorithms=("A2C",), curve_points=0)
    first = run(config, tmp_path, name="mine")
    (first.folder / "table.md").unlink()
    (first.folder / "cells" / "random" / "episodes.parquet").write_bytes(b"half")
    real = experiment.run_task
    again: list[str] = []

    def watched(task: Task, *rest: Any, **options: Any) -> Any:
        again.append(task.label)
        return real(task, *rest, **options)

    monkeypatch.setattr(experiment, "run_task", watched)
    second = run(config, tmp_path, name="mine")
    assert again == ["random"]
    assert [row.summary for row in second.rows] == [row.summary for row in first.rows]
    with pytest.raises(DataError, match="other settings"):
        run(replace(config, episodes=7), tmp_path, name="mine")
    assert finished.folder.exists()


def test_two_seeds_are_summed_up(tmp_path: Path, prepared: Prepared) -> None:
    assert prepared.path.exists()
    result = run(replace(TINY, algorithms=("A2C",), seeds=(0, 1), curve_points=0), tmp_path)
    row = next(row for row in result.rows if row.policy == "A2C")
    assert row.summary.seeds == 2
    assert row.summary.low <= row.summary.mean_return <= row.summary.high
    assert "lowest and the highest mean return" in result.table
    assert "ILRec was not trained" in result.findings[0]


def test_settings_are_checked() -> None:
    with pytest.raises(DataError, match="did you mean 'steps'"):
        ExperimentConfig.from_dict({"stpes": 3})
    with pytest.raises(DataError, match="did you mean 'ILRec'"):
        ExperimentConfig(algorithms=("ILRecc",))
    with pytest.raises(DataError, match="seeds"):
        ExperimentConfig(seeds=(1, 1))
    with pytest.raises(DataError, match="steps=0"):
        ExperimentConfig(steps=0)
    with pytest.raises(DataError, match=r"^steps='many' came; expected a whole number\.$"):
        ExperimentConfig.from_dict({"steps": "many"})
    with pytest.raises(DataError, match=r"^algorithms='ILRec' came; expected a list\.$"):
        ExperimentConfig.from_dict({"algorithms": "ILRec"})
    with pytest.raises(DataError, match="ILRec: beta='x' came; expected a number"):
        ExperimentConfig.from_dict({"settings": {"ILRec": {"beta": "x"}}})
    with pytest.raises(DataError, match=r"settings\.ILRec=3 came; expected a table"):
        ExperimentConfig.from_dict({"settings": {"ILRec": 3}})
    with pytest.raises(DataError, match="did you mean 'learning_rate'"):
        TrainConfig(settings={"learning_rat": 1e-3})


def test_the_price_of_a_category_is_the_best_of_the_grid(dynamics: Dynamics) -> None:
    means = {
        price: run_episodes(dynamics, rule_aware(price), 200, 0).returns.mean()
        for price in TAG_PRICES
    }
    assert means[best_tag_price(dynamics, rule_aware)] == max(means.values())
    fixed = planners(dynamics, dynamics)
    assert list(fixed) == ["random", "greedy", "rule-aware planner", "oracle"]


def test_the_estimate_grows_with_the_steps(dynamics: Dynamics) -> None:
    short = estimate_seconds(replace(TINY, steps=1_000), dynamics, ["A2C"])
    long = estimate_seconds(replace(TINY, steps=1_000_000), dynamics, ["A2C"])
    assert 0 < short < long


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_is_made_saved_and_loaded(
    name: str, dynamics: Dynamics, tmp_path: Path
) -> None:
    model = make_model(name, dynamics, seed=1)
    observation = model.get_env().reset()  # type: ignore[union-attr]
    save_model(model, tmp_path / "model.zip", training_state=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    loaded = load_model(name, tmp_path / "model.zip")
    expected, _ = model.predict(observation, deterministic=True)
    assert loaded.predict(observation, deterministic=True)[0].tolist() == expected.tolist()


def test_settings_that_an_algorithm_does_not_take(dynamics: Dynamics, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'batch_size' came, which A2C does not have"):
        make_model("A2C", dynamics, settings={"batch_size": 3})
    (tmp_path / "no.zip").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as a model of A2C"):
        load_model("A2C", tmp_path / "no.zip")


def row(policy: str, mean: float, trained: bool = False) -> Row:
    return Row(policy, Summary(10, 4.0, 3.0, mean, mean - 1, mean + 1), 1_234.5, 61.0, trained)


def table(**returns: float) -> list[Row]:
    base = {"random": 10.0, "demonstrations": 40.0, "oracle": 110.0} | returns
    return [row(name, mean) for name, mean in base.items()]


def test_findings_tell_a_win() -> None:
    curves = (
        Curve("ILRec", 0, ((0, 30.0), (100, 50.0), (200, 101.0))),
        Curve("DiscreteSAC", 0, ((0, 5.0), (100, 20.0), (200, 45.0))),
    )
    first, second, third = findings(
        table(ILRec=100.0, DQN=9.0, A2C=20.0, DiscreteSAC=80.0),
        curves,
        dataset="synthetic",
        steps=200,
    )
    assert first == (
        "ILRec returns 100.0 a session, 2.50 times its demonstrations' 40.0; it is above "
        "DQN (9.0) and A2C (20.0)."
    )
    assert "90 % of the way from random (10.0) to the oracle (110.0)" in second
    assert "above DiscreteSAC's 70 %" in second
    assert "demonstrations were passed: ILRec after 100, DiscreteSAC after 200;" in second
    assert second.endswith("env steps until 90 % of the way: ILRec after 200.")
    assert "--dataset steam" in third


def test_findings_tell_a_loss() -> None:
    rows = table(ILRec=30.0, DQN=35.0, A2C=20.0, DiscreteSAC=60.0)
    first, second, third = findings(rows, (), dataset="steam", steps=200)
    assert "0.75 times" in first
    assert "NOT above DQN (35.0)" in first
    assert "BELOW DiscreteSAC's 50 %" in second
    assert "--steps 400" in third


def test_the_table_in_numbers() -> None:
    text = table_markdown([row("ILRec", 100.0, trained=True), row("random", 5.25)], "toy")
    assert "| **ILRec** | 4.0 | 3.00 | 100.0 | 99.0 to 101.0 | 1,234 | 61 s |" in text
    assert "| random | 4.0 | 3.00 | 5.2 | 4.2 to 6.2 | 1,234 | 61 s |" in text
