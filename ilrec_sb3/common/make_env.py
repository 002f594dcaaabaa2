"""From what a user passes as an environment to what the algorithms train on."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from ilrec_sb3.common.vec_env import RecVecEnv
from recsim_env.env import RecEnv
from recsim_env.vector_env import RecVectorEnv

__all__ = ["as_vec_env"]

_TRANSPARENT = (OrderEnforcing, PassiveEnvChecker)


def as_vec_env(env: Any, n_sessions: int | None = 32) -> Any:
    """Turns recommender environments into batched ones; leaves everything else as it is.

    A single `RecEnv` as `gymnasium.make` gives it (no further wrapper) becomes ``n_sessions``
    sessions of the same simulation, which train many times faster in one process; one with wrappers
    of the user's stays single.

    Args:
        env: An id, a Gymnasium environment, a `RecVectorEnv`, or a Stable-Baselines3 VecEnv.
        n_sessions: Sessions that a single `RecEnv` is expanded to; None keeps it single.

    Returns:
        A VecEnv for recommender environments, else ``env``.
    """
    if isinstance(env, str):
        env = gym.make(env)
    if isinstance(env, VecEnv):
        return env
    if isinstance(env, VectorEnv):
        return RecVecEnv(env)
    inner: Any = env
    while isinstance(inner, _TRANSPARENT):
        inner = inner.env
    if not isinstance(inner, RecEnv):
        return env
    if n_sessions is None:
        return DummyVecEnv([lambda: Monitor(env)])
    return RecVecEnv(
        RecVectorEnv(
            n_sessions,
            dynamics=inner.dynamics,
            obs_mode=inner.observer.mode,
            sequence_length=inner.observer.length,
        )
    )
