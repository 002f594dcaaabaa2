"""The environment of one session: its contract with Gymnasium and Stable-Baselines3."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from toy import REWARDS, toy_prepared

from recsim_env import CategoryDiversity, DataError, Dynamics, Prepared, RecEnv, RuleContext
from recsim_env.termination import make_rules
from recsim_env.trajectories import Trajectory

TOY = toy_prepared()
MODES = ("vector", "dict", "sequence")


def _toy(**kwargs: Any) -> RecEnv:
    return RecEnv(TOY, **{"window": 3, "max_repeats": 2, "limit": 4, **kwargs})


def _flat(observation: Any) -> Any:
    if isinstance(observation, dict):
        return np.concatenate([np.ravel(value) for value in observation.values()])
    return observation


@pytest.mark.filterwarnings("ignore:.*(infinity|alternative render modes)")
@pytest.mark.parametrize("mode", MODES)
def test_gymnasium_and_stable_baselines_accept_it(prepared: Prepared, mode: Any) -> None:
    env = RecEnv(prepared, obs_mode=mode, render_mode="ansi", limit=6)
    check_env(env)
    sb3_check_env(RecEnv(prepared, obs_mode=mode, limit=6))


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_rollout(prepared: Prepared, mode: Any) -> None:
    def rollout(seed: int) -> list[Any]:
        env = RecEnv(prepared, obs_mode=mode, limit=5)
        rng = np.random.default_rng(0)
        observation, info = env.reset(seed=seed)
        seen = [_flat(observation), info["user"]]
        for _ in range(40):
            observation, reward, terminated, truncated, info = env.step(rng.integers(40))
            seen += [_flat(observation), reward, terminated, truncated, info["ended_by"]]
            if terminated or truncated:
                observation, info = env.reset()
                seen += [_flat(observation), info["user"]]
        return seen

    first, again, other = rollout(5), rollout(5), rollout(6)
    for mine, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=False))


def test_users_are_drawn_uniformly() -> None:
    env = _toy()
    env.reset(seed=0)
    users = np.bincount([env.reset()[1]["user"] for _ in range(900)], minlength=3)
    assert users.min() > 240
    assert users.sum() == 900


def test_a_session_by_hand() -> None:
    env = _toy()
    observation, info = env.reset(options={"user": 1})
    assert env.observation_space.contains(observation)
    assert info["user"] == 1
    assert info["action_mask"].tolist() == [True] * 6
    observation, reward, terminated, truncated, info = env.step(2)
    assert (reward, terminated, truncated) == (3.0, False, False)
    assert info["title"] == "Cat"
    assert info["categories"] == ("a", "b")
    assert info["ended_by"] == ""
    assert info["action_mask"].tolist() == [True, True, False, True, True, True]
    assert observation[env.item_context.layout.categories].tolist() == [0.5, 0.5, 0.0]
    *_, info = env.step(3)
    np.testing.assert_array_equal(env.action_masks(), info["action_mask"])
    _, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated) == (2.0, True, False)
    assert info["ended_by"] == "category"


def test_the_limit_truncates() -> None:
    env = _toy(termination="none", repeat=False)
    env.reset(options={"user": 2})
    steps = [env.step(0)[2:4] for _ in range(4)]
    assert steps == [(False, False)] * 3 + [(False, True)]


def test_a_rule_on_the_last_item_terminates() -> None:
    env = _toy(termination="none", limit=2)
    env.reset(options={"user": 2})
    env.step(0)
    _, _, terminated, truncated, info = env.step(0)
    assert (terminated, truncated, info["ended_by"]) == (True, False, "repeat")


def test_a_rule_of_ones_own() -> None:
    class Bored:
        name = "bored"

        def __call__(self, context: RuleContext) -> Any:
            return context.rewards < 2.5

    env = _toy(termination=[Bored(), CategoryDiversity(3, 2)], repeat=False)
    env.reset(options={"user": 0})
    assert env.step(0)[4]["ended_by"] == ""
    assert env.step(4)[4]["ended_by"] == "bored"


def test_masks_exclude_what_was_shown_and_nothing_that_a_rule_would_punish() -> None:
    env = _toy(max_repeats=2, limit=6)
    env.reset(options={"user": 0})
    env.step(0)
    ends_now = 5  # of the category of item 0, well within the window
    assert env.action_masks().tolist() == [False, True, True, True, True, True]
    assert env.step(ends_now)[4]["ended_by"] == "category"
    env.reset()
    assert env.action_masks().all()


def test_masks_are_copies() -> None:
    env = _toy()
    _, info = env.reset(seed=0)
    env.action_masks()[:] = False
    info["action_mask"][:] = False
    assert env.action_masks().all()


def test_reset_takes_users_and_histories() -> None:
    env = _toy()
    layout = env.item_context.layout
    observation, info = env.reset(options={"history": [4, 4, 4, 4]})
    assert info["user"] == -1
    assert observation[layout.tracker].tolist() == [20.0]
    assert env.step(0)[1] == 3.0  # the toy model: 1 + half the history's length
    observation, info = env.reset(options={"user": 2, "history": []})
    assert (info["user"], observation[layout.tracker].tolist()) == (2, [0.0])
    assert env.step(0)[1] == 1.0
    observation, info = env.reset(options={"user": 2})
    assert (info["user"], observation[layout.tracker].tolist()) == (2, [9.0])
    assert env.step(0)[1] == 3.0
    observation, info = env.reset(options={"user": 2, "history": None})
    assert observation[layout.tracker].tolist() == [9.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.reset(options={"usr": 1}), "option 'usr'; did you mean 'user'"),
        (lambda e: e.reset(options={"user": 3}), "user 3 came"),
        (lambda e: e.reset(options={"user": -1}), "without a history"),
        (lambda e: e.reset(options={"user": "p"}), "give user indices"),
        (lambda e: e.reset(options={"history": [0, 6]}), "holds the item 6"),
        (lambda e: e.reset(options={"history": ["u"]}), "flat list of item indices"),
        (lambda e: e.step(6), "action 6 came; give an item index from 0 to 5"),
        (lambda e: e.step(-1), "action -1 came"),
        (lambda e: e.step(1.5), "action 1.5 came"),
        (lambda e: e.step("Cat"), "action 'Cat' came"),
        (lambda e: e.step(np.array([1, 2])), "item index from 0 to 5"),
        (lambda e: e.replay([]), "replay got no action"),
        (lambda e: e.replay([7]), "actions holds the item 7"),
        (lambda e: e.replay([1], user=9), "user 9 came"),
        (lambda e: e.replay([1], history=[-3]), "history holds the item -3"),
    ],
)
def test_bad_input_is_told_in_one_sentence(call: Any, message: str) -> None:
    env = _toy()
    env.reset(seed=0)
    with pytest.raises(DataError, match=message) as caught:
        call(env)
    assert "\n" not in str(caught.value)
    env.step(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"render_mode": "human"}, "use 'ansi' or None"),
        ({"obs_mode": "dictionary"}, "obs_mode='dictionary'"),
        ({"split": "validation"}, "use 'train' or 'test'"),
        ({"limit": 0}, "at least 1 item"),
        ({"termination": "similar"}, "did you mean 'similarity'"),
        ({"window": 0}, "must be 1 or more"),
    ],
)
def test_arguments_that_do_not_fit_are_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _toy(**arguments)


def test_a_step_needs_a_running_session() -> None:
    env = _toy(limit=1)
    with pytest.raises(DataError, match="call reset"):
        env.step(0)
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(DataError, match="call reset"):
        env.step(0)
    env.reset()
    env.step(0)


@pytest.mark.parametrize("mode", MODES)
def test_a_replay_equals_stepping_and_leaves_the_session_alone(
    prepared: Prepared, mode: Any
) -> None:
    env = RecEnv(prepared, obs_mode=mode, window=6, max_repeats=3, limit=7, split="test")
    env.reset(seed=1)
    env.step(11)
    before = env.action_masks()
    actions = [3, 9, 1, 30, 22, 17, 8, 2]
    for start in ({"user": 4}, {"history": [1, 2, 3]}, {"user": 4, "history": [9]}):
        trajectory = env.replay(actions, **start)
        other = RecEnv(prepared, obs_mode=mode, window=6, max_repeats=3, limit=7, split="test")
        observation, info = other.reset(options=start)
        for t in range(len(trajectory)):
            np.testing.assert_allclose(_flat(observation), trajectory.observations[t], atol=1e-5)
            np.testing.assert_array_equal(
                np.packbits(info["action_mask"]), trajectory.action_masks[t]
            )
            observation, reward, terminated, truncated, info = other.step(actions[t])
            np.testing.assert_allclose(reward, trajectory.rewards[t], atol=1e-5)
        np.testing.assert_allclose(_flat(observation), trajectory.observations[-1], atol=1e-5)
        assert terminated == trajectory.terminated
        assert terminated or truncated
    np.testing.assert_array_equal(env.action_masks(), before)
    assert not env.step(12)[3]


def test_demonstrations_are_replayed_in_this_environment(prepared: Prepared) -> None:
    env = RecEnv(prepared, split="test")
    first, again = env.demonstrations(5, seed=2), env.demonstrations(5, seed=2)
    assert len(first) == 5
    assert all(isinstance(each, Trajectory) for each in first)
    assert first == again
    assert first != env.demonstrations(5, seed=3)
    for each in first:
        assert each.observations.shape == (len(each) + 1, *env.observation_space.shape)
        replayed = env.replay(each.actions, user=each.user)
        np.testing.assert_allclose(replayed.rewards, each.rewards, atol=1e-5)


def test_the_session_as_a_table() -> None:
    env = _toy(render_mode="ansi")
    env.reset(options={"user": 1})
    assert env.render().splitlines()[-1] == "running: 0 items, return 0.00"
    env.step(2)
    env.step(3)
    env.step(1)
    assert env.render().splitlines() == [
        "user 1 of toy",
        "step  reward  title                                     categories",
        f"   1    3.00  {'Cat':<40}  a, b",
        f"   2    4.00  {'Dog':<40}  c",
        f"   3    2.00  {'Bee':<40}  b",
        "ended by category: 3 items, return 9.00",
    ]
    env.reset(options={"history": []})
    assert env.render().splitlines()[0] == "user unknown of toy"
    silent = _toy()
    silent.reset(seed=0)
    assert silent.render() is None


def test_stable_baselines_sees_how_sessions_end() -> None:
    """A truncation bootstraps there, a termination does not."""

    def make() -> Any:
        return Monitor(_toy(termination="none", limit=2), info_keywords=("ended_by",))

    vec = DummyVecEnv([make, make])
    vec.env_method("reset", options={"user": 0})
    vec.step(np.array([0, 0]))
    observations, rewards, dones, infos = vec.step(np.array([1, 0]))
    assert dones.tolist() == [True, True]
    assert rewards.tolist() == [REWARDS[0, 1], REWARDS[0, 0]]
    assert [info["TimeLimit.truncated"] for info in infos] == [True, False]
    assert [info["episode"]["ended_by"] for info in infos] == ["limit", "repeat"]
    assert [info["episode"]["l"] for info in infos] == [2, 2]
    layout = vec.get_attr("unwrapped")[0].item_context.layout
    assert [info["terminal_observation"][layout.step].item() for info in infos] == [1.0, 1.0]
    assert observations[:, layout.step].tolist() == [[0.0], [0.0]]


def test_the_environment_works_inside_gymnasium_wrappers(prepared: Prepared) -> None:
    env = gym.wrappers.RecordEpisodeStatistics(RecEnv(prepared, termination="none", limit=3))
    env.reset(seed=0)
    rewards = [env.step(item)[1] for item in (1, 2)]
    _, reward, _, truncated, info = env.step(3)
    assert truncated
    np.testing.assert_allclose(info["episode"]["r"], sum([*rewards, reward]), rtol=1e-5)
    assert env.unwrapped.action_masks().sum() == 37


def test_ready_dynamics_can_be_shared(dynamics: Dynamics) -> None:
    one, two = RecEnv(dynamics=dynamics), RecEnv(dynamics=dynamics, obs_mode="sequence")
    assert one.dynamics is two.dynamics
    one.reset(seed=0)
    two.reset(seed=0)
    one.step(3)
    assert two.action_masks().all()
    assert [rule.name for rule in dynamics.rules] == [rule.name for rule in make_rules()]
