"""QR-DQN with item heads: the same updates as sb3-contrib's, without the work that has no effect.

sb3-contrib computes every quantile of every item, B x n_quantiles x n numbers a network, and uses
one item's a state. Over a catalogue that is some twenty times the work of DQN. Item heads can be
asked for single items.
"""

from __future__ import annotations

import numpy as np
import torch as th
from sb3_contrib import QRDQN
from sb3_contrib.common.utils import quantile_huber_loss

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
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        assert self.replay_buffer is not None
        learned, target = self.quantile_net.quantile_net, self.quantile_net_target.quantile_net
        assert isinstance(learned, ItemQuantileHead)
        assert isinstance(target, ItemQuantileHead)
        losses = []
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            discounts = getattr(batch, "discounts", None)
            assert isinstance(batch.observations, th.Tensor)
            assert isinstance(batch.next_observations, th.Tensor)
            with th.no_grad():
                # the mean of an item's quantiles is its score by the first head
                best = target.means(batch.next_observations).argmax(dim=1, keepdim=True)
                following = target.quantiles(batch.next_observations, best)
                bootstrap = (1 - batch.dones) * (self.gamma if discounts is None else discounts)
                wanted = batch.rewards + bootstrap * following  # (B, n_quantiles)
            found = learned.quantiles(batch.observations, batch.actions.long())
            loss = quantile_huber_loss(found, wanted, sum_over_quantiles=True)
            losses.append(float(loss.detach()))
            self.policy.optimizer.zero_grad()
            loss.backward()
            if self.max_grad_norm is not None:
                th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", float(np.mean(losses)))
