"""Discrete conservative Q-learning."""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from ilrec_sb3.common.buffers import DemonstrationSamples
from ilrec_sb3.offline.losses import cql_loss
from ilrec_sb3.offline.offline_algorithm import OfflineAlgorithm
from ilrec_sb3.offline.policies import CQLPolicy, OfflinePolicy

__all__ = ["DiscreteCQL"]


class DiscreteCQL(OfflineAlgorithm):
    """Discrete conservative Q-learning: double DQN that holds down what the log does not show.

    Paper: Kumar et al., Conservative Q-Learning for Offline Reinforcement Learning (2020), arXiv
    2006.04779. The paper's Atari agents are quantile regression ones; this is CQL(H) on expected
    values. Values enter the loss in units of ``value_scale``.

    Args:
        policy: As in `OfflineAlgorithm`.
        env: As in `OfflineAlgorithm`.
        alpha: Factor of the regulariser, at least 0. Raising it comes nearer to cloning, which does
            not keep users who leave at what they like; 0.01 to 1 is usual. It counts for more
            where values are small, as at a low ``gamma``.
        gamma: As in `OfflineAlgorithm`.
        kwargs: The other arguments of `OfflineAlgorithm`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": CQLPolicy,
        "MultiInputPolicy": CQLPolicy,
    }
    policy: CQLPolicy

    def __init__(
        self,
        policy: str | type[OfflinePolicy],
        env: GymEnv | str | None,
        *,
        alpha: float = 0.03,
        gamma: float = 0.95,
        **kwargs: Any,
    ) -> None:
        if alpha < 0:
            raise ValueError(
                f"alpha={alpha} came; expected a number of 0 or more: 0.03 is the default."
            )
        self.alpha = alpha
        super().__init__(policy, env, gamma=gamma, **kwargs)

    def _losses(self, batch: DemonstrationSamples) -> dict[str, th.Tensor]:
        policy, scale = self.policy, self.policy.value_scale
        with th.no_grad():
            scores = policy.greedy_scores(batch.next_observations, batch.next_action_masks)
            target = self._double_q_target(batch, scores.argmax(dim=1))
        values = policy.values(batch.observations)[0]
        losses = cql_loss(
            values / scale, batch.actions, target / scale, self.alpha, batch.action_masks
        )
        return {
            "loss": losses.total,
            "td_loss": losses.td,
            "conservative_loss": losses.conservative,
            "q_mean": values.detach().gather(1, batch.actions).mean(),
        }
