"""Lets Stable-Baselines3 train on many sessions at once, without a loop over them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

__all__ = ["RecVecEnv"]


class RecVecEnv(VecEnv):
    """Shows a `recsim_env.vector_env.RecVectorEnv` to Stable-Baselines3 as a VecEnv.

    The vector environment resets finished sessions within the same step and gives what they last
    showed in its infos; this view hands that to each session's own info dict:

    ======================== =====================================================
    terminal_observation     last observation of the finished session
    terminal_action_mask     (n_items,) bool, what could still have been shown
    TimeLimit.truncated      True where the length limit cut the session
    episode                  {"r": return, "l": length, "t": seconds} as Monitor's
    ended_by                 the rule that ended the session, where it is known
    ======================== =====================================================

    Infos of sessions that go on are empty. Since episodes are counted here, no Monitor is needed
    around it, and `env_is_wrapped(Monitor)` says so.

    Args:
        env: The vector environment, with autoreset in the same step.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        """Wraps the environment; nothing is reset yet.

        Raises:
            ValueError: The environment resets finished sessions in a step of their own.
        """
        mode = env.metadata.get("autoreset_mode")
        if mode is not None and getattr(mode, "name", str(mode)) != "SAME_STEP":
            raise ValueError(
                f"A vector environment with {mode} came; expected AutoresetMode.SAME_STEP: pass "
                "vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP} to make_vec, or use "
                "Stable-Baselines3's make_vec_env."
            )
        self.env = env
        self._actions: np.ndarray | None = None
        self._started = time.time()
        self._returns = np.zeros(env.num_envs, dtype=np.float64)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """Starts every session anew.

        Returns:
            Observations, (num_envs, ...) or a dict of such.
        """
        options = [option for option in self._options if option]
        if options and any(option != self._options[0] for option in self._options):
            raise ValueError(
                "Different options for different sessions came; expected the same for all: pass "
                "one dict to set_options()."
            )
        observations, _ = self.env.reset(
            seed=None if self._seeds[0] is None else int(self._seeds[0]),
            options=self._options[0] if options else None,
        )
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return _copied(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions for `step_wait`.

        Args:
            actions: (num_envs,) item indices.
        """
        self._actions = np.asarray(actions).reshape(self.num_envs)

    def step_wait(self) -> VecEnvStepReturn:
        """Makes the step.

        Returns:
            Observations (of finished sessions those of the next one), rewards (num_envs,) float32,
            dones (num_envs,) bool, and one info dict for each session.
        """
        observations, rewards, terminated, truncated, batch = self.env.step(self._actions)
        dones = np.logical_or(terminated, truncated)
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        finished = np.flatnonzero(dones)
        if len(finished):
            for row, info in zip(
                finished.tolist(),
                self._final_infos(finished, terminated, truncated, batch),
                strict=True,
            ):
                infos[row] = info
            self._returns[finished] = 0.0
            self._lengths[finished] = 0
        return _copied(observations), np.array(rewards, dtype=np.float32), dones, infos

    def _final_infos(
        self,
        finished: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        batch: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        """Yields the info of each finished session; columns are gathered once for all of them."""
        seconds = round(time.time() - self._started, 6)
        cut = (np.asarray(truncated)[finished] & ~np.asarray(terminated)[finished]).tolist()
        returns, lengths = self._returns[finished].tolist(), self._lengths[finished].tolist()
        optional = {
            name: _rows(batch[key], finished)
            for name, key in _FINAL.items()
            if batch.get(key) is not None
        }
        for k in range(len(finished)):
            info = {name: _pick(values, k) for name, values in optional.items()}
            info["TimeLimit.truncated"] = cut[k]
            info["episode"] = {"r": returns[k], "l": lengths[k], "t": seconds}
            yield info

    def statistics_state(self) -> dict[str, np.ndarray]:
        """Returns the running sessions' returns and lengths so far, to be stored with a model."""
        return {
            "episode_returns": self._returns.copy(),
            "episode_lengths": self._lengths.copy(),
        }

    def load_statistics_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes back what `statistics_state` gave.

        Args:
            state: Holds "episode_returns" and "episode_lengths", (num_envs,) each.
        """
        self._returns[:] = state["episode_returns"]
        self._lengths[:] = state["episode_lengths"]

    def action_masks(self) -> np.ndarray:
        """Returns what may be shown now, (num_envs, n_items) bool."""
        (method,) = self.get_attr("action_masks", indices=0)
        return np.array(method())

    def close(self) -> None:
        """Frees what the environment holds."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns an attribute of the environment, once for each session asked for.

        Args:
            attr_name: Its name.
            indices: Which sessions; None for all.

        Returns:
            The same value in each place: the sessions share one environment.
        """
        value = getattr(self.env, attr_name, _MISSING)
        if value is _MISSING:
            value = getattr(self.env.unwrapped, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of the environment, for all sessions at once.

        Args:
            attr_name: Its name.
            value: What it becomes.
            indices: Must be None or name every session.
        """
        if len(set(self._get_indices(indices))) != self.num_envs:
            raise ValueError(
                f"set_attr({attr_name!r}) came for part of the sessions; they share one "
                "environment: leave indices out."
            )
        setattr(self.env.unwrapped, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Calls a method of the environment.

        Args:
            method_name: Its name.
            method_args: Passed on.
            indices: Which sessions' results to return; None for all.
            method_kwargs: Passed on.

        Returns:
            One result for each session: a row of what came back where that has a row for each
            session, else the same value in each place.
        """
        (method,) = self.get_attr(method_name, indices=0)
        result = method(*method_args, **method_kwargs)
        batched = isinstance(result, np.ndarray) and result.shape[:1] == (self.num_envs,)
        return [result[i] if batched else result for i in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Returns True for Monitor, whose work is done here, and for nothing else.

        Args:
            wrapper_class: The wrapper asked about.
            indices: Which sessions; None for all.

        Returns:
            One answer for each session.
        """
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Returns no images: sessions are rendered as text."""
        return [None for _ in range(self.num_envs)]


_MISSING = object()


# name in a session's own info -> name of the column in the vector environment's infos
_FINAL = {
    "terminal_observation": "final_obs",
    "terminal_action_mask": "final_mask",
    "ended_by": "ended_by",
}


def _rows(values: Any, rows: np.ndarray) -> Any:
    if isinstance(values, dict):
        return {key: np.asarray(value)[rows] for key, value in values.items()}
    return np.asarray(values)[rows]


def _pick(values: Any, row: int) -> Any:
    if isinstance(values, dict):
        return {key: value[row] for key, value in values.items()}
    return values[row]


def _copied(observations: Any) -> Any:
    """Returns a copy: the environment may write the next step into the same array."""
    if isinstance(observations, dict):
        return {key: np.array(value) for key, value in observations.items()}
    return np.array(observations)
