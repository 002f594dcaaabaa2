"""Self-supervised Q-learning."""

from __future__ import annotations

from typing import ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy

from ilrec_sb3.common.buffers import DemonstrationSamples
from ilrec_sb3.common.masking import masked_logits
from ilrec_sb3.offline.losses import sqn_loss
from ilrec_sb3.offline.offline_algorithm import OfflineAlgorithm
from ilrec_sb3.offline.policies import SQNPolicy

__all__ = ["SQN"]


class SQN(OfflineAlgorithm):
    """Self-supervised Q-learning: next-item prediction, with Q-learning on the same encoder.

    Paper: Xin et al., Self-Supervised Reinforcement Learning for Recommender Systems (2020), arXiv
    2006.05779. The supervised head acts; the Q head shapes the encoder through its own loss and
    restricts nothing, unlike in BCQ. The paper trains two copies in turn, each the other's target;
    here the target is a slow copy, as in the other algorithms of this package.

    Arguments as those of `OfflineAlgorithm`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": SQNPolicy,
        "MultiInputPolicy": SQNPolicy,
    }
    policy: SQNPolicy

    def _losses(self, batch: DemonstrationSamples) -> dict[str, th.Tensor]:
        policy, scale = self.policy, self.policy.value_scale
        with th.no_grad():
            values = policy.values(batch.next_observations)[0]
            best = masked_logits(values, batch.next_action_masks, check=False).argmax(dim=1)
            target = self._double_q_target(batch, best)
        log_probs = policy.log_probs(batch.observations, batch.action_masks)
        q_taken = policy.q_pairs(batch.observations, batch.actions)[0][:, 0]
        losses = sqn_loss(log_probs, batch.actions, q_taken / scale, target / scale)
        return {
            "loss": losses.total,
            "cross_entropy": losses.cross_entropy,
            "td_loss": losses.td,
            "q_mean": q_taken.mean(),
        }
