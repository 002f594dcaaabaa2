"""Recommendation as a Gymnasium environment: datasets, learned world models, session dynamics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsim_env.errors import ArtefactError, DataError, IlrecError, MissingDataError
from recsim_env.lazy import lazy_names
from recsim_env.registration import register_envs

if TYPE_CHECKING:
    from recsim_env.datasets import Dataset, load
    from recsim_env.demonstrations import demonstrations
    from recsim_env.dynamics import Dynamics, ItemContext, ObservationLayout
    from recsim_env.env import RecEnv
    from recsim_env.prepare import PrepareConfig, Prepared, Session, prepare
    from recsim_env.termination import CategoryDiversity, Repeat, RuleContext, Similarity
    from recsim_env.trajectories import Trajectory, load_trajectories, save_trajectories
    from recsim_env.vector_env import RecVectorEnv

__all__ = [
    "ArtefactError",
    "CategoryDiversity",
    "DataError",
    "Dataset",
    "Dynamics",
    "IlrecError",
    "ItemContext",
    "MissingDataError",
    "ObservationLayout",
    "PrepareConfig",
    "Prepared",
    "RecEnv",
    "RecVectorEnv",
    "Repeat",
    "RuleContext",
    "Session",
    "Similarity",
    "Trajectory",
    "demonstrations",
    "load",
    "load_trajectories",
    "prepare",
    "register_envs",
    "save_trajectories",
]

lazy_names(
    __name__,
    {
        "datasets": ("Dataset", "load"),
        "demonstrations": ("demonstrations",),
        "dynamics": ("Dynamics", "ItemContext", "ObservationLayout"),
        "env": ("RecEnv",),
        "prepare": ("PrepareConfig", "Prepared", "Session", "prepare"),
        "termination": ("CategoryDiversity", "Repeat", "RuleContext", "Similarity"),
        "trajectories": ("Trajectory", "load_trajectories", "save_trajectories"),
        "vector_env": ("RecVectorEnv",),
    },
)
register_envs()
