"""The trajectory format: checks, files, and the way to imitation and back."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ilrec_sb3.common.imitation_data import from_imitation, to_imitation
from recsim_env.errors import DataError, MissingDataError
from recsim_env.trajectories import (
    Trajectory,
    from_minari,
    load_trajectories,
    save_trajectories,
    to_minari,
)

json_values = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    steps, dim = draw(st.integers(1, 6)), draw(st.integers(0, 4))
    n_actions = draw(st.none() | st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = None
    if n_actions is not None and draw(st.booleans()):
        masks = np.packbits(rng.random((steps + 1, n_actions)) < 0.5, axis=-1)
    names = draw(st.lists(st.text(max_size=4), max_size=2, unique=True))
    return Trajectory(
        observations=rng.normal(size=(steps + 1, dim)),
        actions=rng.integers(0, n_actions or 1000, size=steps),
        rewards=rng.normal(size=steps),
        terminated=draw(st.booleans()),
        truncated=draw(st.booleans()),
        user=draw(st.integers(-1, 2**40)),
        history=tuple(draw(st.lists(st.integers(0, 2**40), max_size=4))),
        source=draw(st.text(max_size=8)),
        action_masks=masks,
        n_actions=n_actions,
        extras={name: [draw(json_values) for _ in range(steps)] for name in names},
    )


def make(**changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "observations": np.arange(8.0).reshape(4, 2),
        "actions": [2, 0, 1],
        "rewards": [1.0, 2.0, 4.0],
        "terminated": True,
    }
    return Trajectory(**{**fields, **changes})


@given(sessions=st.lists(trajectories(), max_size=4))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_file_round_trip(tmp_path: Path, sessions: list[Trajectory]) -> None:
    path = save_trajectories(tmp_path / "demos.parquet", sessions)
    assert load_trajectories(path) == sessions
    assert list(tmp_path.iterdir()) == [path]


@given(session=trajectories())
@settings(max_examples=25, deadline=None)
def test_imitation_round_trip(session: Trajectory) -> None:
    (there,) = to_imitation([session])
    assert there.obs.shape == session.observations.shape
    assert there.terminal == (session.terminated or session.truncated)
    assert from_imitation([there]) == [session]


def test_imitations_own_trajectories() -> None:
    from imitation.data.types import Trajectory as Bare
    from imitation.data.types import TrajectoryWithRew

    fields = {"obs": np.zeros((3, 2)), "acts": np.array([1, 0]), "terminal": True}
    infos = np.array([{}, {"TimeLimit.truncated": True}], dtype=object)
    rewards = np.array([0.5, 1.5])
    (cut,) = from_imitation([TrajectoryWithRew(infos=infos, rews=rewards, **fields)])
    assert (cut.terminated, cut.truncated, cut.source) == (False, True, "imitation")
    (ended,) = from_imitation([TrajectoryWithRew(infos=None, rews=rewards, **fields)], "bot")
    assert (ended.terminated, ended.truncated, ended.source) == (True, False, "bot")
    with pytest.raises(DataError, match="without rewards"):
        from_imitation([Bare(infos=None, **fields)])


def test_returns_by_hand() -> None:
    np.testing.assert_allclose(make().returns(0.5), [3.0, 4.0, 4.0])
    np.testing.assert_allclose(make().returns(), [7.0, 6.0, 4.0])


def test_unpacked_masks() -> None:
    masks = np.random.default_rng(0).random((4, 11)) < 0.5
    session = make(action_masks=np.packbits(masks, axis=-1), n_actions=11)
    np.testing.assert_array_equal(session.unpacked_masks(), masks)
    assert make().unpacked_masks() is None


def test_it_is_frozen_and_shows_shapes_not_arrays() -> None:
    session = make(source="gpt-4", extras={"thought": ["a", "b", "c"]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        session.user = 3  # type: ignore[misc]
    assert "observations=(4, 2)" in repr(session)
    assert "gpt-4" in repr(session)
    assert "array" not in repr(session)
    assert session.observations.dtype == np.float32
    assert session.actions.dtype == np.int64


def test_the_callers_array_is_not_shared() -> None:
    rewards = np.ones(3, np.float32)
    session = make(rewards=rewards)
    rewards[0] = 9.0
    assert session.rewards[0] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": []}, "at least one integer action"),
        ({"actions": [0.0, 1.0, 2.0]}, "at least one integer action"),
        ({"actions": [0, -1, 1]}, "at least 0"),
        ({"n_actions": 2}, "below n_actions = 2"),
        ({"observations": np.zeros((3, 2))}, r"expected \(4, d\)"),
        ({"observations": np.full((4, 2), np.nan)}, "observations hold NaN"),
        ({"rewards": [1.0, 2.0]}, r"expected \(3,\)"),
        ({"rewards": [1.0, np.inf, 2.0]}, "rewards hold NaN"),
        ({"action_masks": np.zeros((4, 1), np.uint8)}, "pass n_actions"),
        ({"action_masks": np.zeros((3, 1), np.uint8), "n_actions": 3}, r"shape \(4, 1\)"),
        ({"extras": {"thought": ["one"]}}, "1 values for 3 steps"),
    ],
)
def test_what_does_not_fit_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(**changes)


def test_extras_that_json_cannot_hold_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="extras of trajectory 1"):
        save_trajectories(tmp_path / "x.parquet", [make(), make(extras={"x": [1, 2, {3}]})])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="no trajectory file"):
        load_trajectories(tmp_path / "none.parquet")


def test_a_truncated_file_is_told(tmp_path: Path) -> None:
    path = save_trajectories(tmp_path / "demos.parquet", [make()])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a whole parquet file"):
        load_trajectories(path)


def test_other_parquet_files_and_versions_are_told(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(DataError, match="holds no trajectories"):
        load_trajectories(path)
    save_trajectories(path, [make()])
    table = pq.read_table(path)
    newer = {b"ilrec.trajectories": b'{"version": 99}'}
    pq.write_table(table.replace_schema_metadata(newer), path)
    with pytest.raises(DataError, match="has version 99"):
        load_trajectories(path)
    pq.write_table(table.drop_columns(["actions"]), path)
    with pytest.raises(DataError, match="lacks the columns actions"):
        load_trajectories(path)


def test_without_minari_the_install_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'ilrec\[minari\]'"):
        to_minari([make()], None, "ilrec/test-v0")
    with pytest.raises(ImportError, match=r"pip install 'ilrec\[minari\]'"):
        from_minari("ilrec/test-v0")


@pytest.mark.filterwarnings("ignore::UserWarning")  # about metadata that nobody gave
def test_minari_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    sessions = [make(n_actions=5), make(n_actions=5, terminated=False, truncated=True)]
    to_minari(sessions, None, "ilrec/test-v0")
    back = from_minari("ilrec/test-v0")
    assert back == [dataclasses.replace(s, source="ilrec/test-v0") for s in sessions]
