"""Heads that score actions: plain ones, and ones that know items by their features.

Over a catalogue of thousands a one-hot head learns next to nothing. An item head scores item a in state s as

    f(s) . g(item a) + b(a) + c(s) r(s, a) + T(s)[k(s, a)] + U(s)[k(s, a)] r(s, a)

with g a linear map of the item's features, r(s, a) the reward that the train world model predicts, and k(s, a) the
largest count, in the window of the session-end rule, among the categories of a. The last three terms are the
state-item cross features. They say nothing about the rule (where it bites is learned, one number of T and U for each
count), but they put what it depends on within reach. Both cross features follow from the observation, so they exist
for replayed states too, and are shared by the actor and all critics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from torch import nn

from recsim_env.dynamics import ItemContext

__all__ = ["CrossFeatures", "CrossNet", "ItemHead", "PlainHead", "mlp"]

N_COUNTS = 8
"""Counts from 0 to this less one are told apart; larger ones are taken together."""


class CrossFeatures(NamedTuple):
    """State-item features of B states and n items (or of B pairs, where they are (B, 1)).

    Attributes:
        rewards: (B, n) predicted rewards, centred and scaled.
        counts: (B, n) int64, the largest count in the window among the item's categories.
    """

    rewards: th.Tensor
    counts: th.Tensor

    def at(self, actions: th.Tensor) -> CrossFeatures:
        """Returns the features of one item for each state, (B, 1) each; actions are (B, 1)."""
        return CrossFeatures(self.rewards.gather(1, actions), self.counts.gather(1, actions))


def mlp(width: int, hidden: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Returns a stack of linear layers and activations; its last width is ``hidden[-1]``."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), activation()]
        width = size
    return nn.Sequential(*layers)


class CrossNet(nn.Module):
    """Computes the cross features from flat observations; nothing in it is trained.

    Args:
        context: What the environment says about its items.
    """

    categories: th.Tensor
    basis: th.Tensor
    offset: th.Tensor
    features: th.Tensor

    def __init__(self, context: ItemContext) -> None:
        super().__init__()
        self.layout = context.layout
        self.n_items = context.n_items
        centre = float(context.user_offset.mean())
        names = {
            "categories": context.categories.T.copy(),
            "basis": context.user_basis.T.copy(),
            "offset": context.user_offset - centre,
            "features": self._features(context),
        }
        for name, values in names.items():
            self.register_buffer(name, th.as_tensor(np.asarray(values, np.float32)))

    @staticmethod
    def _features(context: ItemContext) -> np.ndarray:
        """Returns (n_items, k) item features: categories, rewards, text; each part of unit scale."""
        size = context.categories.sum(axis=1, keepdims=True)
        parts = [
            context.categories,
            size / max(float(size.mean()), 1.0),
            (context.user_offset - context.user_offset.mean())[:, None],
            context.user_basis / max(float(context.user_basis.std()), 1e-6),
            context.text * np.sqrt(context.text.shape[1] / 4.0),
        ]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def forward(self, flat: th.Tensor) -> CrossFeatures:
        """Returns the cross features of every item.

        Args:
            flat: (B, layout.size) observations.
        """
        rewards = th.addmm(self.offset, flat[:, self.layout.user], self.basis)  # (B, n)
        counts = self._counts(flat)  # (B, C)
        highest = min(int(counts.max().item()) if len(counts) else 0, N_COUNTS - 1)
        largest = th.zeros_like(rewards, dtype=th.int64)
        for level in range(1, highest + 1):
            largest += (counts >= level).float() @ self.categories > 0
        return CrossFeatures(rewards, largest)

    def pairs(self, flat: th.Tensor, actions: th.Tensor) -> CrossFeatures:
        """Returns the cross features of one item for each state.

        Args:
            flat: (B, layout.size) observations.
            actions: (B, 1) int64.
        """
        items = actions[:, 0]
        rewards = (flat[:, self.layout.user] * self.basis.T[items]).sum(1) + self.offset[items]
        counts = (self._counts(flat) * self.categories.T[items]).amax(1)
        return CrossFeatures(rewards[:, None], counts.clamp(max=N_COUNTS - 1).long()[:, None])

    def _counts(self, flat: th.Tensor) -> th.Tensor:
        return (flat[:, self.layout.categories] * self.layout.count_scale).round()


class ItemHead(nn.Module):
    """Scores every item in every state, or one item in each.

    Args:
        n_features: Width of the state features.
        cross: The (shared) cross features.
        hidden: Widths of the state network.
        dim: Width of f and g.
        activation: Of the state network.
        scale: What the outputs are multiplied by; the usual size of what they stand for.
    """

    def __init__(
        self,
        n_features: int,
        cross: CrossNet,
        hidden: Sequence[int] = (128, 128),
        dim: int = 64,
        activation: type[nn.Module] = nn.ReLU,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.dim = dim
        self.trunk = mlp(n_features, hidden, activation)
        width = hidden[-1] if hidden else n_features
        # columns: f(s), c(s), T(s), U(s), one value that all items share
        self.state = nn.Linear(width, dim + 1 + 2 * N_COUNTS + 1)
        self.item = nn.Linear(cross.features.shape[1], dim + 1)  # g(a), b(a)
        with th.no_grad():
            self.state.weight *= 0.1
            self.state.bias.zero_()
            self.item.weight[-1] *= 0.1
            self.item.bias.zero_()

    def _parts(self, features: th.Tensor) -> tuple[th.Tensor, ...]:
        sizes = [self.dim, 1, N_COUNTS, N_COUNTS, 1]
        return self.state(self.trunk(features)).split(sizes, dim=1)

    def forward(
        self, features: th.Tensor, cross: CrossFeatures, item_features: th.Tensor
    ) -> th.Tensor:
        """Returns (B, n) scores.

        Args:
            features: (B, n_features) state features.
            cross: Of all items, (B, n).
            item_features: (n, k).
        """
        f_BD, slope_B1, table_BK, reward_table_BK, value_B1 = self._parts(features)
        g_ID, bias_I = self.item(item_features).split([self.dim, 1], dim=1)
        scores = th.addmm(bias_I.T, f_BD, g_ID.T)
        scores = scores + (table_BK + value_B1).gather(1, cross.counts)
        scores = scores + cross.rewards * (reward_table_BK + slope_B1).gather(1, cross.counts)
        return self.scale * scores

    def pairs(
        self, features: th.Tensor, cross: CrossFeatures, item_features: th.Tensor
    ) -> th.Tensor:
        """Returns (B,) scores of one item for each state.

        Args:
            features: (B, n_features) state features.
            cross: Of the pairs, (B, 1).
            item_features: (B, k) features of the B items.
        """
        f_BD, slope_B1, table_BK, reward_table_BK, value_B1 = self._parts(features)
        g_BD, bias_B1 = self.item(item_features).split([self.dim, 1], dim=1)
        scores = (f_BD * g_BD).sum(1, keepdim=True) + bias_B1
        scores = scores + (table_BK + value_B1).gather(1, cross.counts)
        scores = scores + cross.rewards * (reward_table_BK + slope_B1).gather(1, cross.counts)
        return self.scale * scores[:, 0]


class PlainHead(nn.Module):
    """A multi-layer perceptron with one output for each action.

    Args:
        n_features: Width of the state features.
        n_actions: Number of actions.
        hidden: Widths of the hidden layers.
        activation: Of the hidden layers.
        scale: What the outputs are multiplied by.
    """

    def __init__(
        self,
        n_features: int,
        n_actions: int,
        hidden: Sequence[int] = (128, 128),
        activation: type[nn.Module] = nn.ReLU,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        width = hidden[-1] if hidden else n_features
        self.net = nn.Sequential(mlp(n_features, hidden, activation), nn.Linear(width, n_actions))

    def forward(self, features: th.Tensor) -> th.Tensor:
        """Returns (B, n_actions) scores of (B, n_features) state features."""
        return self.scale * self.net(features)
