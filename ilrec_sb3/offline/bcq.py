"""Discrete batch-constrained Q-learning."""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from ilrec_sb3.common.buffers import DemonstrationSamples
from ilrec_sb3.common.masking import masked_log_softmax
from ilrec_sb3.offline.losses import bcq_loss
from ilrec_sb3.offline.offline_algorithm import OfflineAlgorithm
from ilrec_sb3.offline.policies import BCQPolicy, OfflinePolicy

__all__ = ["DiscreteBCQ"]


class DiscreteBCQ(OfflineAlgorithm):
    """Discrete batch-constrained Q-learning: Q-learning among what the log makes likely.

    Paper: Fujimoto et al., Benchmarking Batch Deep Reinforcement Learning Algorithms (2019), arXiv
    1910.01708.

    Args:
        policy: As in `OfflineAlgorithm`.
        env: As in `OfflineAlgorithm`.
        threshold: tau, see `ilrec_sb3.offline.losses.bcq_scores`. Raising it keeps closer to the
            log. The paper's 0.3 is made for 18 actions at most; in a catalogue it leaves a handful
            of items, too few to keep a user, and fewer the longer the imitator learns.
        logit_coefficient: Factor of the regulariser of the imitator's logits.
        gamma: As in `OfflineAlgorithm`; lower here, as targets take the best of the many
            items that stay in play, and nothing pushes down what is overrated.
        kwargs: The other arguments of `OfflineAlgorithm`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": BCQPolicy,
        "MultiInputPolicy": BCQPolicy,
    }
    policy: BCQPolicy

    def __init__(
        self,
        policy: str | type[OfflinePolicy],
        env: GymEnv | str | None,
        *,
        threshold: float = 1e-4,
        logit_coefficient: float = 1e-2,
        gamma: float = 0.9,
        **kwargs: Any,
    ) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(
                f"threshold={threshold} came; expected a number from 0 to below 1: "
                "0.0001 is the default."
            )
        self.threshold = threshold
        self.logit_coefficient = logit_coefficient
        options = {**(kwargs.pop("policy_kwargs", None) or {}), "threshold": threshold}
        super().__init__(policy, env, gamma=gamma, policy_kwargs=options, **kwargs)

    def _losses(self, batch: DemonstrationSamples) -> dict[str, th.Tensor]:
        policy, scale = self.policy, self.policy.value_scale
        with th.no_grad():
            scores = policy.greedy_scores(batch.next_observations, batch.next_action_masks)
            target = self._double_q_target(batch, scores.argmax(dim=1))
        logits = policy.logits(batch.observations)
        log_probs = masked_log_softmax(logits, batch.action_masks, check=False)
        q_taken = policy.q_pairs(batch.observations, batch.actions)[0][:, 0]
        losses = bcq_loss(
            q_taken / scale,
            target / scale,
            logits,
            log_probs,
            batch.actions,
            self.logit_coefficient,
        )
        return {
            "loss": losses.total,
            "td_loss": losses.td,
            "imitation_loss": losses.imitation,
            "q_mean": q_taken.mean(),
        }
