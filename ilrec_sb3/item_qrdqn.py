"""QR-DQN with item heads: the same updates as sb3-contrib's, without the work that has no effect.

sb3-contrib computes every quantile of every item, B x n_quantiles x n numbers a network, and uses
one item's a state. Over a catalogue that is some twenty times the work of DQN. Item heads can be
asked for single items.
"""

from __future__ import annotations

from typing import Any

import torch as th
from sb3_contrib import QRDQN
from sb3_contrib.common.utils import quantile_huber_loss

from ilrec_sb3.common.gradient_steps import make_gradient_steps
from ilrec_sb3.common.item_policies import ItemQuantileHead

__all__ = ["ItemQRDQN"]


class ItemQRDQN(QRDQN):
    """QR-DQN on `ilrec_sb3.common.item_policies.ItemQRDQNPolicy`; arguments as sb3-contrib's.

    Paper: Dabney, Rowland, Bellemare and Munos, Distributional Reinforcement Learning with Quantile
    Regression (2018), arXiv 1710.10044.
    """

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Makes gradient steps of the quantile Huber loss.

        Args:
            gradient_steps: How many.
            batch_size: Transitions in each.
        """
        make_gradient_steps(self, self._loss, gradient_steps, batch_size, self.max_grad_norm)

    def _loss(self, batch: Any, discounts: th.Tensor | float) -> th.Tensor:
        learned, target = self.quantile_net.quantile_net, self.quantile_net_target.quantile_net
        assert isinstance(learned, ItemQuantileHead)
        assert isinstance(target, ItemQuantileHead)
        with th.no_grad():
            # the mean of an item's quantiles is its score by the first head
            best = target.means(batch.next_observations).argmax(dim=1, keepdim=True)
            following = target.quantiles(batch.next_observations, best)
            wanted = batch.rewards + (1 - batch.dones) * discounts * following  # (B, n_quantiles)
        found = learned.quantiles(batch.observations, batch.actions.long())
        return quantile_huber_loss(found, wanted, sum_over_quantiles=True)
