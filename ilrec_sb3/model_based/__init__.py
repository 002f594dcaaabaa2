"""Reward models of model-based methods: what a learner is told it earned, for any algorithm."""

from __future__ import annotations

from ilrec_sb3.model_based.reward_models import (
    REWARD_MODELS,
    CountsConfig,
    DORLConfig,
    MBPOConfig,
    MOPOConfig,
    PenalisedReward,
    ROLeRConfig,
    reward_model,
)
from ilrec_sb3.model_based.successors import SuccessorEntropy

__all__ = [
    "REWARD_MODELS",
    "CountsConfig",
    "DORLConfig",
    "MBPOConfig",
    "MOPOConfig",
    "PenalisedReward",
    "ROLeRConfig",
    "SuccessorEntropy",
    "reward_model",
]
