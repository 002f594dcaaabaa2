"""Recommendation as a Gymnasium environment: datasets, learned world models, session dynamics."""

from recsim_env.datasets import Dataset, load
from recsim_env.demonstrations import demonstrations
from recsim_env.dynamics import Dynamics, ItemContext, ObservationLayout
from recsim_env.env import RecEnv
from recsim_env.errors import ArtefactError, DataError, IlrecError, MissingDataError
from recsim_env.prepare import PrepareConfig, Prepared, Session, prepare
from recsim_env.registration import register_envs
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

register_envs()
