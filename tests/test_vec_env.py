"""The adapter from the batched environment to Stable-Baselines3's VecEnv."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import A2C
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from ilrec_sb3.common.vec_env import RecVecEnv

N_ITEMS = 4


class Counting(VectorEnv):  # type: ignore[type-arg, misc]
    """Observation: (step in the session, number of the session). Item 0 ends, step 3 truncates.

    The same array is returned at every step, as an environment in a hurry may do.
    """

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space = spaces.Box(-1, 1000, (2,), np.float32)
        self.single_action_space = spaces.Discrete(N_ITEMS)
        self.render_mode = None
        self.spec = None
        self.closed = False
        self.viewer = None  # gymnasium 0.29 closes it
        self.bonus = 0.0
        self.seeds: list[Any] = []
        self.obs = np.zeros((num_envs, 2), np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.seeds.append((seed, options))
        self.obs[:] = 0.0
        return self.obs, {}

    def step(self, actions: np.ndarray) -> Any:
        rewards = (actions + self.bonus).astype(np.float32)
        self.obs[:, 0] += 1
        terminated, truncated = actions == 0, self.obs[:, 0] >= 3
        infos: dict[str, Any] = {"title": np.array(["x"] * self.num_envs, dtype=object)}
        done = terminated | truncated
        infos["ended_by"] = np.where(terminated, "rule", np.where(truncated, "limit", ""))
        if done.any():
            infos["final_obs"] = self.obs.copy()
            infos["final_mask"] = self.action_masks()
            self.obs[done, 0] = 0
            self.obs[done, 1] += 1
        return self.obs, rewards, terminated, truncated, infos

    def action_masks(self) -> np.ndarray:
        return np.arange(N_ITEMS) != self.obs[:, :1]


def test_finished_sessions_tell_how_they_ended() -> None:
    env = RecVecEnv(Counting(3))
    start = env.reset()
    env.step(np.array([1, 1, 2]))
    obs, rewards, dones, infos = env.step(np.array([1, 0, 3]))
    np.testing.assert_array_equal(start, np.zeros((3, 2)))
    np.testing.assert_array_equal(obs, [[2, 0], [0, 1], [2, 0]])
    np.testing.assert_array_equal(dones, [False, True, False])
    assert rewards.dtype == np.float32
    assert infos[0] == {}
    np.testing.assert_array_equal(infos[1]["terminal_observation"], [2, 0])
    np.testing.assert_array_equal(infos[1]["terminal_action_mask"], [True, True, False, True])
    assert infos[1]["TimeLimit.truncated"] is False
    assert (infos[1]["episode"]["r"], infos[1]["episode"]["l"]) == (1.0, 2)
    assert infos[1]["ended_by"] == "rule"
    _, _, dones, infos = env.step(np.array([0, 2, 3]))
    np.testing.assert_array_equal(dones, [True, False, True])
    assert infos[0]["TimeLimit.truncated"] is False  # a rule and the limit at once: a rule
    assert infos[2]["TimeLimit.truncated"] is True
    assert (infos[2]["episode"]["r"], infos[2]["episode"]["l"]) == (8.0, 3)
    infos[0]["mine"] = 1
    assert infos[1] == {}


def test_running_sessions_can_be_taken_up_again() -> None:
    env, other = RecVecEnv(Counting(2)), RecVecEnv(Counting(2))
    for each in (env, other):
        each.reset()
    env.step(np.array([2, 3]))
    other.load_statistics_state(env.statistics_state())
    env.step(np.array([1, 1]))
    _, _, _, infos = other.step(np.array([0, 0]))
    assert (infos[1]["episode"]["r"], infos[1]["episode"]["l"]) == (3.0, 2)


def test_seeds_and_options_reach_the_next_reset_only() -> None:
    env = RecVecEnv(Counting(2))
    env.seed(7)
    env.set_options({"users": [1, 2]})
    env.reset()
    env.reset()
    assert env.env.seeds == [(7, {"users": [1, 2]}), (None, None)]
    env.set_options([{"a": 1}, {"a": 2}])
    with pytest.raises(ValueError, match="the same for all"):
        env.reset()


def test_attributes_and_methods() -> None:
    env = RecVecEnv(Counting(3))
    env.reset()
    assert is_masking_supported(env)
    np.testing.assert_array_equal(get_action_masks(env), env.action_masks())
    assert env.action_masks().shape == (3, N_ITEMS)
    assert len(env.env_method("action_masks", indices=[0, 2])) == 2
    assert env.get_attr("bonus") == [0.0] * 3
    env.set_attr("bonus", 2.0)
    assert env.get_attr("bonus", indices=1) == [2.0]
    with pytest.raises(ValueError, match="leave indices out"):
        env.set_attr("bonus", 1.0, indices=[0])
    with pytest.raises(AttributeError):
        env.get_attr("no_such_thing")
    assert env.env_is_wrapped(Monitor) == [True] * 3
    env.close()


def test_stable_baselines_learns_and_evaluates_on_it() -> None:
    env = RecVecEnv(Counting(4))
    model = A2C("MlpPolicy", env, n_steps=5, seed=0, device="cpu").learn(200)
    assert len(model.ep_info_buffer) > 10
    mean, _ = evaluate_policy(model, env, n_eval_episodes=8)
    assert 0.0 <= mean <= 9.0
