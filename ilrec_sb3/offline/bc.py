"""Behavioural cloning."""

from __future__ import annotations

from typing import ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy

from ilrec_sb3.common.buffers import DemonstrationSamples
from ilrec_sb3.offline.losses import cloning_loss
from ilrec_sb3.offline.offline_algorithm import OfflineAlgorithm
from ilrec_sb3.offline.policies import BCPolicy

__all__ = ["BC"]


class BC(OfflineAlgorithm):
    """Behavioural cloning: the policy that makes the logged actions likely.

    Rewards play no part. Arguments as those of `OfflineAlgorithm`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": BCPolicy,
        "MultiInputPolicy": BCPolicy,
    }
    policy: BCPolicy

    def _losses(self, batch: DemonstrationSamples) -> dict[str, th.Tensor]:
        log_probs = self.policy.log_probs(batch.observations, batch.action_masks)
        return {"loss": cloning_loss(log_probs, batch.actions)}

    def _update_targets(self) -> None:
        """There are none."""
