"""Critic-regularised regression."""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import polyak_update

from ilrec_sb3.common.buffers import DemonstrationSamples
from ilrec_sb3.ilrec.losses import critic_target
from ilrec_sb3.offline.losses import Weighting, crr_loss, crr_weights
from ilrec_sb3.offline.offline_algorithm import OfflineAlgorithm
from ilrec_sb3.offline.policies import CRRPolicy, OfflinePolicy

__all__ = ["CRR"]


class CRR(OfflineAlgorithm):
    """Critic-regularised regression: cloning of the actions that the critic finds good.

    Paper: Wang et al., Critic Regularized Regression (2020), arXiv 2006.15134. Actions are
    discrete, so the expectations over the policy, in advantage and target, are exact sums.

    Args:
        policy: As in `OfflineAlgorithm`.
        env: As in `OfflineAlgorithm`.
        weighting: ``"exp"`` or ``"binary"``, see `ilrec_sb3.offline.losses.crr_weights`.
        beta: Temperature of "exp", in units of reward. Raising it comes nearer to cloning.
        max_weight: Bound of "exp".
        kwargs: The other arguments of `OfflineAlgorithm`; two critics unless ``policy_kwargs`` say
            otherwise.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": CRRPolicy,
        "MultiInputPolicy": CRRPolicy,
    }
    policy: CRRPolicy

    def __init__(
        self,
        policy: str | type[OfflinePolicy],
        env: GymEnv | str | None,
        *,
        weighting: Weighting = "exp",
        beta: float = 0.3,
        max_weight: float = 20.0,
        **kwargs: Any,
    ) -> None:
        if weighting not in ("exp", "binary") or beta <= 0:
            raise ValueError(
                f"weighting={weighting!r} and beta={beta} came; expected 'exp' or 'binary' and a "
                "number above 0: 'exp' and 0.3 are the defaults."
            )
        self.weighting: Weighting = weighting
        self.beta = beta
        self.max_weight = max_weight
        options = {"n_critics": 2, **(kwargs.pop("policy_kwargs", None) or {})}
        super().__init__(policy, env, policy_kwargs=options, **kwargs)

    def _losses(self, batch: DemonstrationSamples) -> dict[str, th.Tensor]:
        policy, scale = self.policy, self.policy.value_scale
        crossed = policy.crossed(batch.observations)
        log_probs = policy.log_probs(batch.observations, batch.action_masks, crossed)
        q_taken = [q[:, 0] for q in policy.q_pairs(batch.observations, batch.actions)]
        with th.no_grad():
            target = self._target(batch)
            expected = policy.expected_q(batch.observations, log_probs.exp(), crossed)
            advantages = (th.stack(q_taken) - expected).amin(dim=0)
            weights = crr_weights(advantages, self.weighting, self.beta, self.max_weight)
        scaled = [q / scale for q in q_taken]
        losses = crr_loss(log_probs, batch.actions, weights, scaled, target / scale)
        return {
            "loss": losses.total,
            "actor_loss": losses.actor,
            "td_loss": losses.td,
            "advantage": advantages.mean(),
            "weight": weights.mean(),
        }

    def _target(self, batch: DemonstrationSamples) -> th.Tensor:
        """Returns (B,) targets: the target critics' smallest value under the target actor."""
        policy, observations = self.policy, batch.next_observations
        crossed = policy.crossed(observations)
        probs = policy.target_log_probs(observations, batch.next_action_masks, crossed).exp()
        expected = policy.expected_q(observations, probs, crossed, target=True)
        return critic_target(batch.rewards, batch.dones, expected.amin(dim=0), self.gamma)

    def _update_targets(self) -> None:
        super()._update_targets()
        policy = self.policy
        polyak_update(policy.actor.parameters(), policy.actor_target.parameters(), self.tau)
