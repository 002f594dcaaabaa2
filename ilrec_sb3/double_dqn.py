"""Double DQN: Stable-Baselines3's DQN with a target that does not overestimate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch as th
from stable_baselines3 import DQN
from torch.nn import functional as F

from ilrec_sb3.common.gradient_steps import make_gradient_steps

__all__ = ["DoubleDQN", "double_q_target"]


def double_q_target(
    rewards: th.Tensor,
    dones: th.Tensor,
    discounts: th.Tensor | float,
    next_online: th.Tensor,
    value_by_target: Callable[[th.Tensor], th.Tensor],
) -> th.Tensor:
    r"""Returns (B, 1) targets, $r + \gamma Q'(s', \arg\max_a Q(s', a))$ (van Hasselt et al. 2016).

    Args:
        rewards: (B, 1).
        dones: (B, 1), 1 where the session ended.
        discounts: gamma, or (B, 1) its powers.
        next_online: (B, n) values of the next states by the network that learns; it chooses.
        value_by_target: Returns what the target network says that the (B, 1) chosen actions are
            worth, (B, 1).
    """
    chosen = next_online.argmax(dim=1, keepdim=True)
    return rewards + (1 - dones) * discounts * value_by_target(chosen)


class DoubleDQN(DQN):
    """DQN whose next action is chosen by the network that learns and valued by the target network.

    Paper: van Hasselt, Guez and Silver, Deep Reinforcement Learning with Double Q-learning (2016),
    arXiv 1509.06461. Everything else is Stable-Baselines3's DQN, arguments included. Networks with
    a method ``pairs(observations, actions)``, as item heads have it, are asked for the values of
    single actions where no others are needed.
    """

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Makes gradient steps towards `double_q_target`.

        Args:
            gradient_steps: How many.
            batch_size: Transitions in each.
        """
        make_gradient_steps(self, self._loss, gradient_steps, batch_size, self.max_grad_norm)

    def _loss(self, batch: Any, discounts: th.Tensor | float) -> th.Tensor:
        with th.no_grad():
            target = double_q_target(
                batch.rewards,
                batch.dones,
                discounts,
                self.q_net(batch.next_observations),
                partial(_values, self.q_net_target, batch.next_observations),
            )
        predicted = _values(self.q_net, batch.observations, batch.actions.long())
        return F.smooth_l1_loss(predicted, target)


def _values(network: th.nn.Module, observations: Any, actions: th.Tensor) -> th.Tensor:
    """Returns (B, 1) values of the (B, 1) actions."""
    pairs = getattr(network, "pairs", None)
    if pairs is not None:
        values: th.Tensor = pairs(observations, actions)
        return values
    every: th.Tensor = network(observations)
    return every.gather(1, actions)
