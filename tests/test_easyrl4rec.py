"""Coat in EasyRL4Rec's settings: the rule, the modes, and the floor and ceiling of the table."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recsim_env import DataError, Dynamics, MissingDataError, Prepared, RecEnv, RecVectorEnv
from recsim_env import easyrl4rec as peer
from recsim_env.datasets import from_tables
from recsim_env.datasets.coat import pseudo_ground_truth
from recsim_env.dynamics import State
from recsim_env.easyrl4rec import (
    FixedLength,
    Mode,
    RatingDistance,
    coat_feedback,
    easyrl4rec_dynamics,
    easyrl4rec_stage,
)
from recsim_env.encoders import EncoderConfig
from recsim_env.planners import oracle, run_episodes
from recsim_env.termination import Rule, RuleContext
from recsim_env.world_model import WorldModelConfig

COLUMNS = np.array([[1, 1], [1, 4], [5, 4], [5, 5], [2, 1]], np.float32)
"""Five items rated by two users. Distances: 0-1 is 3, 1-2 is 4, 2-3 is 1, 0-4 is 1, 0-2 is 5."""


def context(shown: list[list[int]], items: list[int], n_items: int = 5) -> RuleContext:
    """A context of sessions that have shown ``shown`` and now show ``items``."""
    longest = max(1, *(len(row) for row in shown))
    mask = np.ones((len(shown), n_items), bool)
    for row, past in enumerate(shown):
        mask[row, past] = False
    return RuleContext(
        items=np.array(items),
        rewards=np.zeros(len(shown), np.float32),
        shown=np.array([row + [0] * (longest - len(row)) for row in shown], np.int64),
        steps=np.array([len(row) for row in shown]),
        mask=mask,
        categories=np.zeros((n_items, 1), np.float32),
        text=np.zeros((n_items, 1), np.float32),
        counts=np.zeros((len(shown), 1), np.float32),
        counts_window=1,
    )


def test_the_rule_by_hand() -> None:
    rule = RatingDistance(COLUMNS, window=2, threshold=3.0)
    assert isinstance(rule, Rule)
    cases = {
        ((), 0): False,  # never at the first step
        ((0,), 1): False,  # distance 3 is not below 3
        ((0,), 4): True,  # distance 1
        ((0,), 0): True,  # the same item
        ((0, 1, 2), 4): False,  # item 0 has left the window of two items
        ((1, 0, 2), 4): True,
    }
    past = [list(shown) for shown, _ in cases]
    fires = rule(context(past, [item for _, item in cases]))
    assert fires.tolist() == list(cases.values())
    assert fires.dtype == np.bool_
    assert rule.recent == 2
    assert "columns" not in repr(rule)


def published_slice(past: list[int], window: int) -> list[int]:
    """The items that the published simulator compares with, by its own slice."""
    t = len(past)
    return past[t - window : t]


@settings(max_examples=60, deadline=None)
@given(
    past=st.lists(st.integers(0, 4), max_size=9),
    item=st.integers(0, 4),
    window=st.integers(1, 8),
    threshold=st.sampled_from([0.0, 1.0, 1.5, 3.5, 9.0]),
)
def test_both_windows_are_as_their_slices(
    past: list[int], item: int, window: int, threshold: float
) -> None:
    slices = {False: past[max(0, len(past) - window) :], True: published_slice(past, window)}
    for short_window, compared in slices.items():
        rule = RatingDistance(COLUMNS, window, threshold, short_window)
        distances = [np.linalg.norm(COLUMNS[item] - COLUMNS[other]) for other in compared]
        expected = any(distance < threshold for distance in distances)
        assert rule(context([past], [item])).tolist() == [expected]


@settings(max_examples=30, deadline=None)
@given(
    pasts=st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=4),
    short_window=st.booleans(),
)
def test_the_answer_for_all_items_is_that_for_each(
    pasts: list[list[int]], short_window: bool
) -> None:
    for rule in (RatingDistance(COLUMNS, 3, 2.0, short_window), FixedLength(3)):
        ends = rule.ends(context(pasts, [0] * len(pasts)))
        assert ends.shape == (len(pasts), 5)
        for item in range(5):
            alone = rule(context(pasts, [item] * len(pasts)))
            assert ends[:, item].tolist() == alone.tolist()


def test_the_short_window_of_seven() -> None:
    """Of t = 1 to 8 items, the published slice compares 1, 2, 3, 3, 2, 1, 7 and 7."""
    counts = [len(published_slice(list(range(t)), 7)) for t in range(1, 9)]
    assert counts == [1, 2, 3, 3, 2, 1, 7, 7]
    far = np.diag(np.full(9, 100.0)).astype(np.float32)
    rule = RatingDistance(far, short_window=True)
    for t, count in enumerate(counts, start=1):
        past = list(range(t))
        fires = rule(context([past] * t, past, n_items=9))
        assert fires.tolist() == [item >= t - count for item in past]


def test_bad_settings_are_explained() -> None:
    with pytest.raises(DataError, match="one row for each item"):
        RatingDistance(np.zeros(3, np.float32))
    with pytest.raises(DataError, match="finite"):
        RatingDistance(np.full((2, 2), np.nan, np.float32))
    for wrong in ({"window": 0}, {"threshold": -1.0}, {"threshold": float("nan")}):
        with pytest.raises(DataError, match="window must be 1 or more"):
            RatingDistance(COLUMNS, **wrong)


@pytest.fixture
def ratings(prepared: Prepared) -> NDArray[np.float32]:
    """A made-up truth: whole numbers, and items 2k and 2k + 1 rated alike."""
    generator = np.random.default_rng(0)
    half = generator.integers(1, 6, (prepared.dataset.n_users, prepared.dataset.n_items // 2))
    return np.repeat(half, 2, axis=1).astype(np.float32)


def test_rewards_masks_and_lengths_of_the_modes(
    prepared: Prepared, ratings: NDArray[np.float32]
) -> None:
    made = {
        (split, mode): easyrl4rec_dynamics(prepared, ratings, split=split, mode=mode)
        for split in ("train", "test")
        for mode in ("FB", "NX_0", "NX_10")
    }
    assert len({dynamics.fingerprint for dynamics in made.values()}) == 6
    assert len({str(dynamics.layout) for dynamics in made.values()}) == 1
    rewards = {"test": ratings, "train": prepared.rows("train")}
    for (split, mode), dynamics in made.items():
        state = dynamics.allocate(2)
        dynamics.initial(state, np.arange(2), np.array([3, 4]))
        outcome = dynamics.step(state, np.array([5, 6]))
        expected = rewards[split][[3, 4], [5, 6]]
        np.testing.assert_array_equal(outcome.rewards, expected)
        assert not outcome.ended_by.any()
        assert state.mask.all() == (mode == "FB")
        assert dynamics.limit == 30
        ended = dynamics.step(state, np.array([4, 8]))  # item 4 is rated like item 5
        assert ended.terminated.tolist() == [mode != "NX_10", False]
    played = {
        mode: run_episodes(made["test", mode], oracle(), 20, seed=0)
        for mode in ("FB", "NX_0", "NX_10")
    }
    lengths = {mode: set(episodes.lengths.tolist()) for mode, episodes in played.items()}
    assert lengths == {"FB": {30}, "NX_0": {30}, "NX_10": {10}}
    assert set(played["NX_10"].ended_by) == {"length"}
    shown = {mode: played[mode].actions for mode in ("FB", "NX_0")}
    assert all(len(set(actions)) == 30 for actions in shown["NX_0"])
    assert all(len(set(actions)) < 30 for actions in shown["FB"])


def test_the_window_is_an_option_of_the_dynamics(
    prepared: Prepared, ratings: NDArray[np.float32]
) -> None:
    made = [
        easyrl4rec_dynamics(prepared, ratings, short_window=short_window)
        for short_window in (False, True)
    ]
    assert made[0].fingerprint != made[1].fingerprint
    past = [0, 2, 4, 6, 8]  # of five items the published slice sees two
    for dynamics, fires in zip(made, (True, False), strict=True):
        state = dynamics.allocate(1)
        dynamics.initial(state, np.zeros(1, np.int64), np.zeros(1, np.int64))
        for item in past:
            assert not dynamics.step(state, np.array([item])).terminated[0]
        assert dynamics.step(state, np.array([1])).terminated[0] == fires


def test_a_mode_that_is_not_known(prepared: Prepared, ratings: NDArray[np.float32]) -> None:
    wrong: Any = "NX_1"
    with pytest.raises(DataError, match=r"mode='NX_1' is not known.*'NX_10'"):
        easyrl4rec_dynamics(prepared, ratings, mode=wrong)


@pytest.fixture
def small_stage(
    prepared: Prepared, ratings: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> Prepared:
    """Lets a small prepared dataset and a made-up truth stand in for Coat."""
    monkeypatch.setattr(peer, "prepare_coat", lambda *_: prepared)
    monkeypatch.setattr(peer, "pseudo_ground_truth", lambda *_: ratings)
    return prepared


def test_the_stage(small_stage: Prepared, ratings: NDArray[np.float32]) -> None:
    train, tests = easyrl4rec_stage()
    assert list(tests) == ["FB", "NX_0", "NX_10"]
    assert train.prepared is small_stage
    assert train.repeats
    state = train.allocate(1)
    train.initial(state, np.zeros(1, np.int64), np.array([7]))
    np.testing.assert_array_equal(train.reward_table(state)[0], small_stage.rows("train")[7])
    for dynamics in tests.values():
        np.testing.assert_array_equal(dynamics.reward_table(state)[0], ratings[7])


def test_feedback_is_from_the_self_selected_ratings(small_stage: Prepared) -> None:
    told = coat_feedback(small_stage)
    width = small_stage.user_basis.shape[1]
    assert told.covariance.shape == (width, width)
    assert 0 < told.noise < 2
    train, tests = easyrl4rec_stage(progress=False)
    for dynamics in (train, *tests.values()):
        assert dynamics.feedback is not None
        np.testing.assert_array_equal(dynamics.feedback.covariance, told.covariance)
    still, _ = easyrl4rec_stage(progress=False, feedback=False)
    assert still.feedback is None


@pytest.mark.filterwarnings("ignore:.*infinity")
@pytest.mark.usefixtures("small_stage")
def test_the_environment_by_name() -> None:
    modes: tuple[Mode, ...] = ("FB", "NX_0", "NX_10")
    for mode, split in itertools.product(modes, ("train", "test")):
        env = gym.make("IlRecCoatEasyRL4Rec-v0", mode=mode, split=split, render_mode="ansi")
        assert isinstance(env.unwrapped, RecEnv)
        assert env.unwrapped.dynamics.split == split
        assert env.unwrapped.dynamics.repeats == (mode == "FB")
    check_env(env.unwrapped)
    if not gym.__version__.startswith("0."):
        vector = gym.make_vec("IlRecCoatEasyRL4Rec-v0", num_envs=3, mode="NX_0", split="test")
        assert isinstance(vector.unwrapped, RecVectorEnv)
        assert vector.num_envs == 3
        assert not vector.unwrapped.dynamics.repeats
        vector.close()


def test_missing_data_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="coat"):
        gym.make("IlRecCoatEasyRL4Rec-v0", data=tmp_path, cache=tmp_path, progress=False)


def truth(folder: Path, values: NDArray[np.float64], names: list[str]) -> Path:
    (folder / "coat").mkdir(exist_ok=True)
    table = pa.table({name: values[:, k] for k, name in enumerate(names)})
    pq.write_table(table, folder / "coat" / "pseudo_ground_truth.parquet")
    return folder


def test_the_pseudo_ground_truth_is_matched_by_id(tmp_path: Path) -> None:
    dataset = from_tables(
        {"user": ["0", "1", "2"], "item": ["0", "1", "2"], "rating": [1.0, 2.0, 3.0]},
        {"item": ["0", "1", "2"], "title": ["a", "b", "c"], "categories": ["x", "y", "z"]},
        "three",
    )
    dataset = dataclasses.replace(
        dataset,
        user_ids=("2", "0", "1"),
        catalogue=dataclasses.replace(dataset.catalogue, item_ids=("3", "1", "2")),
    )
    values = np.array([[1, 2, 3, 4], [5, 4, 3, 2], [2, 2, 1, 5]], np.float64)
    names = ["0", "1", "2", "3"]
    found = pseudo_ground_truth(dataset, truth(tmp_path, values, names))
    assert found.tolist() == [[5, 2, 1], [4, 2, 3], [2, 4, 3]]
    assert found.dtype == np.float32
    with pytest.raises(DataError, match="none for '3'"):
        pseudo_ground_truth(dataset, truth(tmp_path, values[:, :2], names[:2]))
    with pytest.raises(DataError, match="none for '2'"):
        pseudo_ground_truth(dataset, truth(tmp_path, values[:2], names))
    with pytest.raises(DataError, match=r"from 0.0 to 5.0"):
        pseudo_ground_truth(dataset, truth(tmp_path, np.where(values == 1, 0, values), names))


@pytest.mark.realdata
def test_the_floor_and_the_ceiling_are_those_of_the_published_simulator(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against figures measured with the peers' own code, which has the short window."""
    barely = dataclasses.replace(
        peer.COAT_CONFIG,
        world_model=WorldModelConfig(members=1, max_epochs=1),
        encoder=EncoderConfig(dim=4, max_epochs=1),
    )
    monkeypatch.setattr(peer, "COAT_CONFIG", barely)
    lengths = {}
    for short_window in (False, True):
        train, tests = easyrl4rec_stage(real_data, tmp_path, False, short_window=short_window)
        lengths[short_window] = run_episodes(tests["FB"], masked, 800, seed=0).lengths.mean()
    assert train.prepared.train_rows.sum() == 290 * 24
    assert not train.prepared.test_rows.any()
    assert lengths[False] == pytest.approx(11.73, abs=0.6)
    assert lengths[True] == pytest.approx(12.56, abs=0.7)
    returns = {
        (name, mode): run_episodes(tests[mode], planner, count, seed=0).returns.mean()
        for name, planner, count in (("random", masked, 800), ("oracle", oracle(), 150))
        for mode in ("FB", "NX_0")
    }
    assert returns["random", "FB"] == pytest.approx(28.3, abs=1.5)
    assert returns["random", "NX_0"] == pytest.approx(31.4, abs=1.5)
    assert returns["oracle", "FB"] == pytest.approx(93.7, abs=2.0)
    assert returns["oracle", "NX_0"] == pytest.approx(88.3, abs=2.0)
    ten = run_episodes(tests["NX_10"], masked, 800, seed=0)
    assert set(ten.lengths.tolist()) == {10}
    assert ten.returns.mean() == pytest.approx(22.3, abs=0.4)


def masked(_: Dynamics, state: State, generator: np.random.Generator) -> NDArray[np.int64]:
    """Any item that the mask leaves."""
    return np.asarray(np.where(state.mask, generator.random(state.mask.shape), -1.0).argmax(axis=1))
