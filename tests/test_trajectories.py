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

EMBEDDINGS = ("state_embeddings", "action_embeddings")
VERSION_1 = [
    ("observations", pa.list_(pa.float32())),
    ("observation_dim", pa.int32()),
    ("actions", pa.list_(pa.int64())),
    ("rewards", pa.list_(pa.float32())),
    ("terminated", pa.bool_()),
    ("truncated", pa.bool_()),
    ("user", pa.int64()),
    ("history", pa.list_(pa.int64())),
    ("source", pa.string()),
    ("n_actions", pa.int64()),
    ("action_masks", pa.binary()),
    ("extras", pa.string()),
]

json_values = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    steps, dim = draw(st.integers(1, 6)), draw(st.integers(0, 4))
    n_actions = draw(st.none() | st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = None
    if n_actions is not None and draw(st.booleans()):
        masks = np.packbits(rng.random((steps + 1, n_actions)) < 0.5, axis=-1)
    sizes = {name: draw(st.integers(0, 3)) for name in EMBEDDINGS}
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
        **{name: rng.normal(size=(steps, size)) for name, size in sizes.items() if size},
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


def test_embeddings_are_in_the_infos_of_their_step() -> None:
    session = make(state_embeddings=np.eye(3), action_embeddings=np.ones((3, 1)))
    (there,) = to_imitation([session])
    assert there.infos is not None
    assert there.infos[1]["ilrec.state_embedding"].tolist() == [0.0, 1.0, 0.0]
    assert there.infos[2]["ilrec.action_embedding"].tolist() == [1.0]
    assert "ilrec.state_embedding" not in to_imitation([make()])[0].infos[0]


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


def test_embeddings_are_optional_and_of_their_own_size() -> None:
    session = make(state_embeddings=np.ones((3, 2)))
    assert session.state_embeddings is not None
    assert session.state_embeddings.dtype == np.float32
    assert session.action_embeddings is None
    assert "state_embeddings=(3, 2), action_embeddings=None" in repr(session)
    assert session != make()
    assert session != make(state_embeddings=np.zeros((3, 2)))
    assert session == make(state_embeddings=np.ones((3, 2), np.float64))


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
        ({"state_embeddings": np.zeros((4, 2))}, r"state_embeddings of shape \(4, 2\).*\(3, e\)"),
        ({"action_embeddings": np.zeros((2, 2))}, r"action_embeddings of shape \(2, 2\)"),
        ({"state_embeddings": np.zeros(3)}, r"state_embeddings of shape \(3,\)"),
        ({"state_embeddings": np.zeros((3, 0))}, "e at least 1"),
        ({"action_embeddings": np.full((3, 2), np.inf)}, "expected finite numbers"),
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
    with pytest.raises(DataError, match=r"has version 99.*reads versions 1 and 2"):
        load_trajectories(path)
    pq.write_table(table.drop_columns(["actions"]), path)
    with pytest.raises(DataError, match="lacks the columns actions"):
        load_trajectories(path)


def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    schema = pa.schema(
        [pa.field(name, kind) for name, kind in VERSION_1],
        metadata={b"ilrec.trajectories": b'{"version": 1}'},
    )
    row = {
        "observations": np.arange(8.0).tolist(),
        "observation_dim": 2,
        "actions": [2, 0, 1],
        "rewards": [1.0, 2.0, 4.0],
        "terminated": True,
        "truncated": False,
        "user": 7,
        "history": [3],
        "source": "gpt-4",
        "n_actions": 5,
        "action_masks": bytes([248, 216, 88, 24]),
        "extras": '{"thought": ["a", "b", "c"]}',
    }
    path = tmp_path / "old.parquet"
    pq.write_table(pa.Table.from_pylist([row], schema=schema), path)
    masks = np.array([[248], [216], [88], [24]], np.uint8)
    (session,) = load_trajectories(path)
    assert session == make(
        user=7,
        history=(3,),
        source="gpt-4",
        n_actions=5,
        action_masks=masks,
        extras={"thought": ["a", "b", "c"]},
    )
    save_trajectories(path, [session])
    assert pq.read_schema(path).metadata[b"ilrec.trajectories"] == b'{"version": 2}'
    assert load_trajectories(path) == [session]


def test_a_file_of_version_2_needs_its_columns(tmp_path: Path) -> None:
    path = save_trajectories(tmp_path / "demos.parquet", [make()])
    pq.write_table(pq.read_table(path).drop_columns(["state_embedding_dim"]), path)
    with pytest.raises(DataError, match="lacks the columns state_embedding_dim"):
        load_trajectories(path)


def test_without_minari_the_install_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'ilrec\[minari\]'"):
        to_minari([make()], None, "ilrec/test-v0")
    with pytest.raises(ImportError, match=r"pip install 'ilrec\[minari\]'"):
        from_minari("ilrec/test-v0")


@pytest.fixture
def minari_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Minari's datasets, empty; skips without Minari."""
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


quiet = pytest.mark.filterwarnings("ignore::UserWarning")  # about metadata that nobody gave


@quiet
def test_minari_round_trip(minari_folder: Path) -> None:
    masks = np.packbits(np.random.default_rng(0).random((4, 11)) < 0.5, axis=-1)
    whole = make(
        n_actions=11,
        user=2**40,
        history=(2, 3),
        source='gpt-4 "x"',
        action_masks=masks,
        extras={"thought": ["ä", None, "\x00\ud800"], "grounding": [1, 2.5, {"a": [True]}]},
        state_embeddings=np.random.default_rng(1).normal(size=(3, 4)),
        action_embeddings=np.ones((3, 1)),
    )
    cut = make(n_actions=11, terminated=False, truncated=True, action_embeddings=np.zeros((3, 1)))
    short = Trajectory(np.ones((2, 2)), np.array([0]), np.array([0.1]), terminated=False)
    sessions = [whole, cut, short]
    to_minari(sessions, None, "ilrec/test-v0")
    assert from_minari("ilrec/test-v0") == sessions
    assert (minari_folder / "ilrec" / "test-v0").is_dir()


@quiet
def test_minari_takes_the_spaces_of_an_environment(minari_folder: Path) -> None:
    session = make(observations=np.ones((4, 4)), actions=[1, 0, 1])
    dataset = to_minari([session], "CartPole-v1", "ilrec/cart-v0")
    assert dataset.action_space.n == 2
    assert from_minari("ilrec/cart-v0") == [session]
    assert minari_folder in dataset.storage.data_path.parents


@quiet
def test_minari_infos_hold_the_arrays(minari_folder: Path) -> None:
    dataset = to_minari([make(state_embeddings=np.eye(3))], None, "ilrec/infos-v0")
    assert minari_folder in dataset.storage.data_path.parents
    assert dataset[0].infos["state_embeddings"].tolist() == [*np.eye(3).tolist(), [0.0] * 3]


@quiet
def test_a_minari_dataset_of_somebody_else(minari_folder: Path) -> None:
    import minari
    from gymnasium import spaces

    def create(name: str, action: Any, action_space: spaces.Space[Any]) -> None:
        buffer = minari.data_collector.EpisodeBuffer(
            observations=[np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)],
            actions=[action],
            rewards=[0.5],
            terminations=[False],
            truncations=[True],
        )
        space = spaces.Box(-1, 1, (2, 2), np.float32)
        minari.create_dataset_from_buffers(
            name,
            [buffer],
            data_format="arrow",
            action_space=action_space,
            observation_space=space,
        )

    assert list(minari_folder.iterdir()) == []
    create("theirs-v0", 1, spaces.Discrete(3))
    assert from_minari("theirs-v0") == [
        Trajectory(
            np.array([[0.0] * 4, [1.0] * 4]),
            np.array([1]),
            np.array([0.5]),
            terminated=False,
            truncated=True,
            source="theirs-v0",
            n_actions=3,
        )
    ]
    create("continuous-v0", np.zeros(1, np.float32), spaces.Box(-1, 1, (1,), np.float32))
    with pytest.raises(DataError, match="expected a Discrete one"):
        from_minari("continuous-v0")


@pytest.mark.parametrize(
    ("sessions", "message"),
    [
        ([], "needs at least one"),
        ([make(observations=np.zeros((4, 0)))], "Observations without a column"),
        ([make(), make(observations=np.zeros((4, 3)))], "observations with 2 and 3 columns"),
        (
            [make(state_embeddings=np.ones((3, size))) for size in (1, 4)],
            "state_embeddings with 1 and 4 columns",
        ),
        ([make(extras={"x": [1, 2, {3}]})], "extras of trajectory 0"),
    ],
)
def test_what_minari_cannot_hold_is_told(
    minari_folder: Path, sessions: list[Trajectory], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        to_minari(sessions, None, "ilrec/test-v0")
    assert list(minari_folder.iterdir()) == []
