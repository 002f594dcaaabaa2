"""The environments' names for `gymnasium.make` and `gymnasium.make_vec`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym

if TYPE_CHECKING:
    from recsim_env.datasets import Dataset
    from recsim_env.prepare import Prepared
    from recsim_env.vector_env import RecVectorEnv

__all__ = ["EASYRL4REC", "ENVIRONMENTS", "make_vector_env", "register_envs"]

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "IlRecAmazon-v0": {"dataset": "amazon", "fallback": True},
    "IlRecCoat-v0": {"dataset": "coat", "fallback": True},
    "IlRecCustom-v0": {"dataset": ""},
    "IlRecMovieLens-v0": {"dataset": "movielens", "fallback": True},
    "IlRecSteam-v0": {"dataset": "steam", "fallback": True},
    "IlRecSynthetic-v0": {"dataset": "synthetic"},
}
"""Arguments of each environment; ``IlRecCustom-v0`` asks for ``dataset=``."""

EASYRL4REC = "IlRecCoatEasyRL4Rec-v0"
"""Coat in a peer's settings, which takes ``mode=``; see `recsim_env.easyrl4rec`."""


def make_vector_env(
    num_envs: int = 1,
    *,
    dataset: str | Dataset | Prepared,
    max_episode_steps: int | None = None,
    **kwargs: Any,
) -> RecVectorEnv:
    """Makes what `gymnasium.make_vec` asks for.

    Gymnasium before 1.0 hands over nothing but ``vector_kwargs``, so ``dataset`` has no default: an
    environment of another dataset than the id says must not come of it.

    Args:
        num_envs: Number of sessions.
        dataset: As in `RecVectorEnv`.
        max_episode_steps: Gymnasium's name for ``limit``, which it takes the place of where given.
        kwargs: The other arguments of `RecVectorEnv`.
    """
    from recsim_env.vector_env import RecVectorEnv  # takes seconds, which `import recsim_env` saves

    if max_episode_steps is not None:
        kwargs["limit"] = max_episode_steps
    return RecVectorEnv(num_envs, dataset, **kwargs)


def register_envs() -> None:
    """Registers the environments with Gymnasium; a second call changes nothing."""
    for name, arguments in ENVIRONMENTS.items():
        if name not in gym.registry:
            gym.register(
                id=name,
                entry_point="recsim_env.env:RecEnv",
                vector_entry_point="recsim_env.registration:make_vector_env",
                kwargs=arguments,
            )
    if EASYRL4REC not in gym.registry:
        gym.register(
            id=EASYRL4REC,
            entry_point="recsim_env.easyrl4rec:make_easyrl4rec_env",
            vector_entry_point="recsim_env.easyrl4rec:make_easyrl4rec_vector_env",
        )
