"""Networks that score actions: plain ones, and ones that know items by their features.

Over a catalogue of thousands a one-hot head learns next to nothing. An item scorer scores item a in
state s as

    f(s) . g(a) + b(a) + c(s) r(s, a) + T(s)[k(s, a)]

with g a linear map of the item's features, r(s, a) the reward that the train world model predicts,
and k(s, a) the largest count, in the window of the session-end rule, among the categories of a. The
last two terms are the state-item cross features. They say nothing about the rule (where it bites is
learned, one number of T for each count), but they put what it depends on within reach. Both follow
from the observation, so they exist for replayed states too, and are shared by the actor and all
critics.

r(s, a) is itself a product of the user vector in s and the item's row of the basis, so the first
and the third term are one matrix product. In the expectation of the score over a policy, that
product is with the items' mean columns, which all critics share:

    E_a[score] = [f(s), c(s) u(s), c(s)] . E_a[g(a), v(a), o(a)] + E_a[b(a)] + E_a[T(s)[k(s, a)]]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from torch import nn

from recsim_env.dynamics import ItemContext

__all__ = ["N_COUNTS", "Coefficients", "CrossNet", "ItemScorer", "PlainScorer", "mlp"]

N_COUNTS = 8
"""Counts from 0 to this less one are told apart; larger ones are taken together."""


def mlp(width: int, hidden: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Returns a stack of linear layers and activations; its last width is ``hidden[-1]``."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), activation()]
        width = size
    return nn.Sequential(*layers)


class CrossNet(nn.Module):
    """What follows from an observation about every item; nothing in it is trained.

    Args:
        context: What the environment says about its items.
    """

    categories: th.Tensor
    reward_items: th.Tensor
    features: th.Tensor
    input_scale: th.Tensor

    def __init__(self, context: ItemContext) -> None:
        super().__init__()
        self.layout = context.layout
        self.n_items = context.n_items
        self.base = 2.0 * max(float(context.categories.sum(axis=1).max()), 1.0)
        offset = (context.user_offset - context.user_offset.mean())[:, None]
        scale = np.ones(context.layout.size, np.float32)
        scale[context.layout.user] = 1.0 / np.maximum(context.user_scale, 1e-6)
        buffers = {
            "categories": context.categories.T.copy(),  # (C, n)
            "reward_items": np.concatenate([context.user_basis, offset], axis=1),  # (n, K + 1)
            "features": self._features(context),  # (n, k)
            "input_scale": scale,  # (d,)
        }
        for name, values in buffers.items():
            self.register_buffer(name, th.as_tensor(np.asarray(values, np.float32)))

    @staticmethod
    def _features(context: ItemContext) -> np.ndarray:
        """Returns (n_items, k) item features, each part of unit scale."""
        size = context.categories.sum(axis=1, keepdims=True)
        offset = context.user_offset - context.user_offset.mean()
        parts = [
            context.categories,
            size / max(float(size.mean()), 1.0),
            (offset / max(float(offset.std()), 1e-6))[:, None],
            context.user_basis / np.maximum(context.user_basis.std(axis=0), 1e-6),
            context.text * np.sqrt(context.text.shape[1] / 4.0),
        ]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def scaled(self, flat: th.Tensor) -> th.Tensor:
        """Returns observations whose parts are all of unit scale, (B, d)."""
        return flat * self.input_scale

    def user(self, flat: th.Tensor) -> th.Tensor:
        """Returns (B, K + 1) user vectors and a 1; with ``reward_items`` they give r(s, a)."""
        part = flat[:, self.layout.user]
        return th.cat([part, th.ones_like(part[:, :1])], dim=1)

    def forward(self, flat: th.Tensor) -> th.Tensor:
        """Returns (B, n) int64, the largest count in the window among each item's categories.

        The largest exponent of a sum of powers is read off its logarithm, as long as the base
        exceeds the number
        of terms: one matrix product instead of one for each count.

        Args:
            flat: (B, d) observations.
        """
        powers = self.base ** self._counts(flat)
        total = (powers @ self.categories).clamp_(min=1.0)
        return total.log_().mul_(1.0 / float(np.log(self.base))).add_(1e-3).long()

    def pairs(self, flat: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Returns (B, 1) int64 counts of the (B, 1) actions."""
        counts = (self._counts(flat) * self.categories.T[actions[:, 0]]).amax(1)
        return counts.long()[:, None]

    def _counts(self, flat: th.Tensor) -> th.Tensor:
        counts = flat[:, self.layout.categories] * self.layout.count_scale
        return counts.round().clamp(max=N_COUNTS - 1)


class Coefficients(NamedTuple):
    """What a head says about B states.

    Attributes:
        weights: (B, D + K + 1), factors of the items' columns.
        table: (B, N_COUNTS), T(s).
    """

    weights: th.Tensor
    table: th.Tensor


class ItemScorer(nn.Module):
    """One or more heads that score every item in every state; the heads share g and b.

    Args:
        n_features: Width of the state features.
        cross: The (shared) cross features.
        n_heads: Number of heads, each with a state network of its own.
        hidden: Widths of the state networks.
        dim: Width D of f and g.
        activation: Of the state networks.
        scale: What the scores are multiplied by; the usual size of what they stand for.
    """

    def __init__(
        self,
        n_features: int,
        cross: CrossNet,
        n_heads: int,
        hidden: Sequence[int],
        dim: int,
        activation: type[nn.Module],
        scale: float,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.scale = scale
        width = hidden[-1] if hidden else n_features
        # columns of a head: f(s), c(s), T(s)
        self.heads = nn.ModuleList(
            nn.Sequential(mlp(n_features, hidden, activation), nn.Linear(width, dim + 1 + N_COUNTS))
            for _ in range(n_heads)
        )
        self.item = nn.Linear(cross.features.shape[1], dim + 1)  # g(a), b(a)
        with th.no_grad():
            for head in self.heads:
                head[-1].weight *= 0.01  # type: ignore[index]
                head[-1].bias.zero_()  # type: ignore[index]
            self.item.weight[-1] *= 0.1
            self.item.bias.zero_()

    def coefficients(
        self, features: th.Tensor, flat: th.Tensor, cross: CrossNet
    ) -> list[Coefficients]:
        """Returns what each head says about the states.

        Args:
            features: (B, n_features) state features.
            flat: (B, d) observations.
            cross: The cross features.
        """
        user = cross.user(flat)
        result = []
        for head in self.heads:
            f, slope, table = head(features).split([self.dim, 1, N_COUNTS], dim=1)
            weights = self.scale * th.cat([f, slope * user], dim=1)
            result.append(Coefficients(weights, self.scale * table))
        return result

    def columns(
        self, cross: CrossNet, items: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor]:
        """Returns columns (m, D + K + 1) and biases (m,) of all items, or of the given (m,)."""
        features, rewards = cross.features, cross.reward_items
        if items is not None:
            features, rewards = features[items], rewards[items]
        g, bias = self.item(features).split([self.dim, 1], dim=1)
        return th.cat([g, rewards], dim=1), self.scale * bias[:, 0]

    def scores(self, head: Coefficients, counts: th.Tensor, cross: CrossNet) -> th.Tensor:
        """Returns (B, n) scores of one head."""
        columns, bias = self.columns(cross)
        return th.addmm(bias, head.weights, columns.T) + head.table.gather(1, counts)

    def pairs(
        self, heads: Sequence[Coefficients], counts: th.Tensor, items: th.Tensor, cross: CrossNet
    ) -> list[th.Tensor]:
        """Returns for each head (B,) scores of one item a state; counts and items are (B, 1)."""
        columns, bias = self.columns(cross, items[:, 0])
        return [
            (head.weights * columns).sum(1) + bias + head.table.gather(1, counts)[:, 0]
            for head in heads
        ]

    def expected(
        self, heads: Sequence[Coefficients], probs: th.Tensor, counts: th.Tensor, cross: CrossNet
    ) -> th.Tensor:
        """Returns (n_heads, B) expected scores under (B, n) probabilities."""
        columns, bias = self.columns(cross)
        mean = probs @ th.cat([columns, bias[:, None]], dim=1)
        return th.stack(
            [
                (head.weights * mean[:, :-1]).sum(1)
                + mean[:, -1]
                + (probs * head.table.gather(1, counts)).sum(1)
                for head in heads
            ]
        )


class PlainScorer(nn.Module):
    """One or more multi-layer perceptrons with one output for each action.

    Args:
        n_features: Width of the state features.
        n_actions: Number of actions.
        n_heads: Number of heads.
        hidden: Widths of the hidden layers.
        activation: Of the hidden layers.
        scale: What the scores are multiplied by.
    """

    def __init__(
        self,
        n_features: int,
        n_actions: int,
        n_heads: int,
        hidden: Sequence[int],
        activation: type[nn.Module],
        scale: float,
    ) -> None:
        super().__init__()
        self.scale = scale
        width = hidden[-1] if hidden else n_features
        self.heads = nn.ModuleList(
            nn.Sequential(mlp(n_features, hidden, activation), nn.Linear(width, n_actions))
            for _ in range(n_heads)
        )

    def forward(self, features: th.Tensor) -> list[th.Tensor]:
        """Returns for each head the (B, n) scores of (B, n_features) state features."""
        return [self.scale * head(features) for head in self.heads]
