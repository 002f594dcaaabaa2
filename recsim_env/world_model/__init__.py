"""Learned reward model: an ensemble of DeepFM over users, items, categories and histories."""

from recsim_env.world_model.biases import Biases
from recsim_env.world_model.deepfm import DeepFM
from recsim_env.world_model.ensemble import WorldModel, WorldModelConfig
from recsim_env.world_model.kernel import Kernel, kernel_table, taste_covariance

__all__ = [
    "Biases",
    "DeepFM",
    "Kernel",
    "WorldModel",
    "WorldModelConfig",
    "kernel_table",
    "taste_covariance",
]
