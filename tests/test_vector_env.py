"""Many sessions at once: equal to single ones step by step, seen by Stable-Baselines3, stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import A2C
from toy import toy_prepared

from ilrec_sb3.common.vec_env import RecVecEnv
from recsim_env import DataError, Dynamics, Prepared, RecEnv, RecVectorEnv, Session

TOY = toy_prepared()
MODES = ("vector", "dict", "sequence")


def _toy(num_envs: int = 2, **kwargs: Any) -> RecVectorEnv:
    return RecVectorEnv(num_envs, TOY, **{"window": 3, "max_repeats": 2, "limit": 4, **kwargs})


def _row(observations: Any, k: int) -> Any:
    if isinstance(observations, dict):
        return {name: values[k] for name, values in observations.items()}
    return observations[k]


def _assert_close(mine: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert list(mine) == list(theirs)
        for name, values in theirs.items():
            np.testing.assert_allclose(mine[name], values, atol=1e-5)
    else:
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("seeds", [7, [5, 90, 2]])
@pytest.mark.parametrize("mode", MODES)
def test_it_equals_single_environments_step_by_step(
    prepared: Prepared, mode: Any, seeds: Any
) -> None:
    """Through autoreset: what single environments give at the end is in the infos here."""
    arguments: dict[str, Any] = {"obs_mode": mode, "window": 8, "max_repeats": 4, "limit": 5}
    arguments["sequence_length"] = 9
    vector = RecVectorEnv(3, prepared, **arguments)
    singles = [RecEnv(prepared, **arguments) for _ in range(3)]
    rng = np.random.default_rng(0)
    observations, infos = vector.reset(seed=seeds)
    each_seed = [seeds + k for k in range(3)] if isinstance(seeds, int) else seeds
    for k, env in enumerate(singles):
        observation, info = env.reset(seed=each_seed[k])
        _assert_close(_row(observations, k), observation)
        assert infos["user"][k] == info["user"]
    endings = set()
    for _ in range(250):
        actions = rng.integers(40, size=3)
        observations, rewards, terminated, truncated, infos = vector.step(actions)
        for k, env in enumerate(singles):
            observation, reward, over, cut, info = env.step(actions[k])
            assert rewards[k] == np.float32(reward)
            assert (bool(terminated[k]), bool(truncated[k])) == (over, cut)
            for name in ("title", "categories", "ended_by"):
                assert infos[name][k] == info[name]
            endings.add(info["ended_by"])
            if over or cut:
                assert infos["_final_obs"][k]
                assert infos["_final_mask"][k]
                _assert_close(_row(infos["final_obs"], k), observation)
                np.testing.assert_array_equal(infos["final_mask"][k], info["action_mask"])
                observation, info = env.reset()
            elif "_final_obs" in infos:
                assert not infos["_final_obs"][k]
            _assert_close(_row(observations, k), observation)
            np.testing.assert_array_equal(infos["action_mask"][k], info["action_mask"])
            np.testing.assert_array_equal(vector.action_masks()[k], env.action_masks())
    assert endings == {"", "category", "repeat", "limit"}


def test_it_equals_single_environments_that_start_from_options() -> None:
    options = {"histories": [[4, 4], [], [1]], "users": [-1, 2, 0]}
    vector = _toy(3)
    singles = [RecEnv(dynamics=vector.dynamics) for _ in range(3)]
    observations, infos = vector.reset(seed=3, options=options)
    for k, env in enumerate(singles):
        start = {"history": options["histories"][k], "user": options["users"][k]}
        observation, info = env.reset(seed=3 + k, options=start)
        _assert_close(observations[k], observation)
        assert infos["user"][k] == info["user"]
    rng = np.random.default_rng(1)
    for _ in range(30):
        actions = rng.integers(6, size=3)
        observations, rewards, terminated, truncated, _ = vector.step(actions)
        for k, env in enumerate(singles):
            observation, reward, *ends, _ = env.step(actions[k])
            assert rewards[k] == reward
            if any(ends):
                observation, _ = env.reset()
            _assert_close(observations[k], observation)
            assert [terminated[k], truncated[k]] == ends


def test_the_same_seed_gives_the_same_rollout(prepared: Prepared) -> None:
    def rollout(seed: int) -> list[Any]:
        env = RecVectorEnv(5, prepared, limit=5)
        rng = np.random.default_rng(0)
        seen = list(env.reset(seed=seed)[:1])
        for _ in range(60):
            seen += env.step(rng.integers(40, size=5))[:4]
        return seen

    for mine, theirs in zip(rollout(3), rollout(3), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not np.array_equal(rollout(3)[0], rollout(4)[0])


def test_a_reset_without_a_seed_goes_on_with_the_generators() -> None:
    env = _toy(40)
    users = [env.reset(seed=1)[1]["user"], env.reset()[1]["user"], env.reset(seed=1)[1]["user"]]
    np.testing.assert_array_equal(users[0], users[2])
    assert not np.array_equal(users[0], users[1])


def test_spaces_hold_what_comes(prepared: Prepared) -> None:
    for mode in MODES:
        env = RecVectorEnv(4, prepared, obs_mode=mode)  # type: ignore[arg-type]
        env.reset(seed=0)
        env.action_space.seed(0)
        for _ in range(20):
            observations, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
            assert env.observation_space.contains(observations)
        assert rewards.dtype == np.float32
        assert terminated.dtype == truncated.dtype == np.bool_
        assert all(env.single_observation_space.contains(_row(observations, k)) for k in range(4))


def test_both_at_once_terminates() -> None:
    env = _toy(2, termination="none", limit=2)
    env.reset(seed=0)
    env.step([0, 0])
    _, _, terminated, truncated, infos = env.step([0, 1])
    assert terminated.tolist() == [True, False]
    assert truncated.tolist() == [False, True]
    assert infos["ended_by"].tolist() == ["repeat", "limit"]
    assert infos["final_mask"].tolist() == [[False] + [True] * 5, [False, False] + [True] * 4]
    assert infos["action_mask"].all()


def test_masks_of_an_earlier_step_stay_as_they_were() -> None:
    env = _toy(2, termination="none")
    _, first = env.reset(seed=0)
    *_, second = env.step([0, 1])
    env.step([2, 3])
    assert first["action_mask"].all()
    assert second["action_mask"].sum() == 10
    assert env.action_masks().sum() == 8
    with pytest.raises(ValueError, match="read-only"):
        env.action_masks()[0, 0] = True


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.reset(options={"user": 1}), "option 'user'; did you mean 'users'"),
        (lambda e: e.reset(options={"users": [0]}), "give 2 of each"),
        (lambda e: e.reset(options={"histories": [[0]]}), "give 2 of each"),
        (lambda e: e.reset(options={"users": [0, -1]}), "without a history"),
        (lambda e: e.reset(options={"users": [0, 3]}), "user 3 came"),
        (lambda e: e.reset(options={"users": [0, 0.5]}), "give user indices"),
        (lambda e: e.reset(options={"histories": [[0], [6]]}), "holds the item 6"),
        (lambda e: e.reset(seed=[1, 2, 3]), "3 seeds came for 2 sessions"),
        (lambda e: e.step([0]), r"shape \(1,\)"),
        (lambda e: e.step([0, 6]), "0 to 6; item indices run from 0 to 5"),
        (lambda e: e.step([-1, 0]), "-1 to 0"),
        (lambda e: e.step([0.0, 1.0]), "float64"),
        (lambda e: e.load_state_dict(_toy(3).state_dict()), "3 stored sessions came for"),
    ],
)
def test_bad_input_is_told_in_one_sentence(call: Any, message: str) -> None:
    env = _toy()
    env.reset(seed=0)
    with pytest.raises(DataError, match=message) as caught:
        call(env)
    assert "\n" not in str(caught.value)
    env.step([0, 1])


def test_what_cannot_be_made_or_stepped_is_told(prepared: Prepared) -> None:
    with pytest.raises(DataError, match="num_envs=0"):
        _toy(0)
    with pytest.raises(DataError, match="not rendered"):
        _toy(render_mode="ansi")
    with pytest.raises(DataError, match="call reset"):
        _toy().step([0, 0])
    with pytest.raises(DataError, match="over 40 items came for a catalogue of 6"):
        _toy().load_state_dict(RecVectorEnv(2, prepared).state_dict())


@pytest.mark.parametrize("options", [None, {"histories": [[4], [0, 1], []], "users": [-1, 5, 2]}])
def test_stored_and_loaded_it_goes_on_as_if_never_stopped(prepared: Prepared, options: Any) -> None:
    def make() -> RecVectorEnv:
        return RecVectorEnv(3, prepared, limit=7, obs_mode="sequence", sequence_length=10)

    env, other = make(), make()
    rng = np.random.default_rng(0)
    env.reset(seed=4, options=options)
    for _ in range(3):
        observations, *_ = env.step(rng.integers(40, size=3))
    state = env.state_dict()
    assert all(isinstance(a, np.ndarray) and a.dtype.kind in "biuf" for a in state.values())
    json.loads(state["generators"].tobytes())
    np.testing.assert_array_equal(other.load_state_dict(state), observations)
    # More sessions than users are drawn at a time, so the generators are asked again.
    for _ in range(400):
        actions = rng.integers(40, size=3)
        mine, theirs = env.step(actions), other.step(actions)
        for a, b in zip(mine[:4], theirs[:4], strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(mine[4]["action_mask"], theirs[4]["action_mask"])
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


def test_a_state_is_a_copy() -> None:
    env = _toy()
    env.reset(seed=0)
    state = env.state_dict()
    before = {name: values.copy() for name, values in state.items()}
    env.step([0, 1])
    for name, values in state.items():
        np.testing.assert_array_equal(values, before[name])


def test_replays_leave_the_sessions_alone(prepared: Prepared) -> None:
    env = RecVectorEnv(2, prepared)
    env.reset(seed=0)
    env.step([3, 4])
    before = env.action_masks()
    sessions = [Session(1, (), (5, 6), ""), Session(-1, (2, 3), (7,), "")]
    first, second = env.replay(sessions)
    np.testing.assert_array_equal(env.action_masks(), before)
    single = RecEnv(prepared)
    np.testing.assert_allclose(first.rewards, single.replay([5, 6], user=1).rewards, atol=1e-5)
    alone = single.replay([7], history=[2, 3])
    np.testing.assert_allclose(second.observations, alone.observations, atol=1e-5)
    assert len(env.demonstrations(3, seed=1)) == 3


def test_stable_baselines_sees_how_sessions_end() -> None:
    env = RecVecEnv(_toy(2, termination="none", limit=2))
    env.set_options({"users": [0, 1]})
    env.reset()
    env.step(np.array([0, 0]))
    observations, rewards, dones, infos = env.step(np.array([1, 0]))
    layout = env.env.item_context.layout
    assert dones.tolist() == [True, True]
    assert rewards.tolist() == [4.0, 1.0]
    assert [info["TimeLimit.truncated"] for info in infos] == [True, False]
    assert [info["ended_by"] for info in infos] == ["limit", "repeat"]
    assert [info["episode"]["r"] for info in infos] == [9.0, 2.0]
    assert [info["terminal_observation"][layout.step].item() for info in infos] == [1.0, 1.0]
    assert [info["terminal_observation"][layout.tracker].item() for info in infos] == [6.0, 11.0]
    assert infos[0]["terminal_action_mask"].tolist() == [False, False, True, True, True, True]
    assert observations[:, layout.step].tolist() == [[0.0], [0.0]]


def test_stable_baselines_learns_on_it(dynamics: Dynamics) -> None:
    env = RecVecEnv(RecVectorEnv(4, dynamics=dynamics))
    model = A2C("MlpPolicy", env, seed=0, device="cpu").learn(400)
    assert len(model.ep_info_buffer) > 10
    assert all(1.0 <= info["r"] <= 500.0 for info in model.ep_info_buffer)


def test_it_closes_once_and_quietly() -> None:
    env = _toy()
    env.close()
    env.close()
    assert env.closed
