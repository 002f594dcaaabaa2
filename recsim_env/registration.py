"""The environments' names for `gymnasium.make` and `gymnasium.make_vec`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

__all__ = ["ENVIRONMENTS", "register_envs"]

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "IlRecAmazon-v0": {"dataset": "amazon", "fallback": True},
    "IlRecCoat-v0": {"dataset": "coat", "fallback": True},
    "IlRecCustom-v0": {"dataset": ""},
    "IlRecMovieLens-v0": {"dataset": "movielens", "fallback": True},
    "IlRecSteam-v0": {"dataset": "steam", "fallback": True},
    "IlRecSynthetic-v0": {"dataset": "synthetic"},
}
"""Arguments of each environment; ``IlRecCustom-v0`` asks for ``dataset=``."""


def register_envs() -> None:
    """Registers the environments with Gymnasium; a second call changes nothing."""
    for name, arguments in ENVIRONMENTS.items():
        if name not in gym.registry:
            gym.register(
                id=name,
                entry_point="recsim_env.env:RecEnv",
                vector_entry_point="recsim_env.vector_env:RecVectorEnv",
                kwargs=arguments,
            )
